// Package httplist is a source that knows the TPMs in a list behind a web server. It combines the
// document of package ekhashes, in its JSON format, with the origin of package web. The text format
// is refused, since a text list that was cut off is still a text list.
package httplist

import (
	"context"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

// Config says where the list is. Only URL is required.
type Config = web.ListConfig

// Source is a list behind a web server. It is safe for concurrent use.
type Source struct {
	*list.List[*ekhashes.Document]
}

// New checks the configuration and returns the source. It reads nothing: the first Load does. If
// the configuration is invalid, it returns the joined errors, one sources.FieldError for each
// problem.
func New(cfg Config) (*Source, error) {
	l, err := web.NewList(func(data []byte) (*ekhashes.Document, error) {
		return ekhashes.Parse(data, ekhashes.Options{JSON: true})
	}, cfg)
	if err != nil {
		return nil, err
	}
	return &Source{l}, nil
}

// Check implements sources.Source. It looks up the EK hash in memory, and cannot tell if there is
// no list that may be used.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, fmt.Errorf("look up the EK hash: %w", err)
	}
	d, err := s.Current()
	if err != nil {
		return sources.Verdict{}, err
	}
	return d.Verdict(ev.EKHash), nil
}
