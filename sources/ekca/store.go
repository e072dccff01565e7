package ekca

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// newStore returns what fetches and keeps certificates and CRLs, or nil where
// nothing is to be fetched.
func newStore(cfg Config, now func() time.Time) (*certfetch.Fetcher, error) {
	if len(cfg.AIAHosts) == 0 && len(cfg.EKCertificateURLs) == 0 {
		return nil, nil //nolint:nilnil // nothing is to be fetched
	}
	store, err := certfetch.New(storeConfig(cfg, now))
	if err != nil {
		return nil, fmt.Errorf("what is fetched: %w", err)
	}
	return store, nil
}

func storeConfig(cfg Config, now func() time.Time) certfetch.Config {
	return certfetch.Config{
		Hosts:     slices.Clone(cfg.AIAHosts),
		Bases:     slices.Sorted(maps.Values(cfg.EKCertificateURLs)),
		Mirror:    cfg.MirrorURL,
		CachePath: cfg.CachePath,
		Now:       now,
	}
}

// loadStore loads what was fetched before, once. The store itself keeps why it
// could not.
func (s *Source) loadStore(ctx context.Context) {
	if s.store == nil || s.storeLoaded.Load() {
		return
	}
	if err := s.store.Load(ctx); err == nil || ctx.Err() == nil {
		s.storeLoaded.Store(true)
	}
}

// runStore writes what is fetched until ctx ends. Its goroutine has no guard
// above it.
func (s *Source) runStore(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("keep what is fetched: panic: %v", p)
		}
	}()
	if err := s.store.Run(ctx); err != nil {
		return fmt.Errorf("keep what is fetched: %w", err)
	}
	return nil
}

// storeWarnings says what is wrong with the cache.
func (s *Source) storeWarnings() []string {
	if s.store == nil {
		return nil
	}
	if err := s.store.Stats().CacheError; err != nil {
		return []string{err.Error()}
	}
	return nil
}
