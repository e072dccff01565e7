// Package httplist is a source that knows the TPMs in a list behind a web server: the
// document of package ekhashes, in its JSON form, from the origin of package web. The
// text form is refused, since a text that was cut is a text as well.
package httplist

import (
	"context"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

// Config is where the list is. Only URL is required.
type Config = web.ListConfig

// Source is a list behind a web server. It is safe for concurrent use.
type Source struct {
	*list.List[*ekhashes.Document]
}

// New checks the configuration and returns the source. It reads nothing: the first Load
// does. The error is of all that is wrong.
func New(cfg Config) (*Source, error) {
	l, err := web.NewList(func(data []byte) (*ekhashes.Document, error) {
		return ekhashes.Parse(data, ekhashes.Options{JSON: true})
	}, cfg)
	if err != nil {
		return nil, err
	}
	return &Source{l}, nil
}

// Check implements sources.Source. It looks the EK hash up in memory, and cannot tell if
// there is no list that may serve.
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
