// Package hashfile is a source that knows the TPMs in a list in a file. It combines the document of
// package ekhashes, in either format, with the origin of package file. It answers from memory: an
// attestation reads no file.
package hashfile

import (
	"context"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/file"
)

// Config says where the list is. Only Path is required.
type Config struct {
	// Path is the file: file.Config.Path.
	Path string
	// PollInterval is the longest time between two looks at the file: list.Config.Every.
	PollInterval time.Duration
	// MaxStaleness is how long the last good list is served while the file is missing, cannot be
	// read, or is not a good list: list.Config.MaxStaleness. A file that can be read is never
	// stale, however old it is.
	MaxStaleness time.Duration
	// MaxBytes is the maximum length of the file: file.Config.MaxBytes.
	MaxBytes int64
	// AllowEmpty accepts a text list without entries.
	AllowEmpty bool
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
}

// Source is a list of TPMs in a file. It is safe for concurrent use.
type Source struct {
	*list.List[*ekhashes.Document]
	origin *file.Origin
}

// New checks the configuration and returns the source. It touches no file.
func New(cfg Config) (*Source, error) {
	l, origin, err := file.NewList(func(data []byte) (*ekhashes.Document, error) {
		return ekhashes.Parse(data, ekhashes.Options{AllowEmpty: cfg.AllowEmpty})
	}, file.Config{Path: cfg.Path, MaxBytes: cfg.MaxBytes, Every: cfg.PollInterval, Now: cfg.Now}, cfg.MaxStaleness)
	if err != nil {
		return nil, err
	}
	return &Source{l, origin}, nil
}

// Check implements sources.Source. It looks up the EK hash in memory, and cannot tell if there is
// no list that may be used.
func (s *Source) Check(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	d, err := s.Current()
	if err != nil {
		return sources.Verdict{}, err
	}
	return d.Verdict(ev.EKHash), nil
}

// Watch implements sources.Watcher.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	return s.origin.Watch(ctx, changed)
}
