package ekca

import (
	"context"
	"net"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
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
	over := cfg.store()
	over.Dial = dial
	if s.Store, err = truststore.New(over, certs.EK()); err != nil {
		tb.Fatal(err)
	}
	return s
}

// CloseStore has the source ask nobody any more.
func (s *Source) CloseStore() error { return s.Close() }
