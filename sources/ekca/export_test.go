package ekca

import (
	"context"
	"net"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// NewOver returns a source that asks over a network of a test's.
func NewOver(
	tb testing.TB, cfg Config, dial func(ctx context.Context, network, address string) (net.Conn, error),
) *Source {
	tb.Helper()
	s, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	over := storeConfig(s.cfg)
	over.Dial = dial
	if s.store, err = fetch.New(over); err != nil {
		tb.Fatal(err)
	}
	return s
}

// CloseStore has the source ask nobody any more.
func (s *Source) CloseStore() error { return s.store.Close() }
