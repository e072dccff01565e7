package ekca

import (
	"context"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// Chains reports whether cert, of a CA or of an EK, chains to root where that is
// the only CA configured.
func Chains(tb testing.TB, cert, root *x509.Certificate, now time.Time) bool {
	tb.Helper()
	files := []caFile{{path: "root", entries: []entry{{cert: root, number: 1}}}}
	all, warnings, err := build(tb.Context(), files, now)
	if err != nil || len(warnings) > 0 {
		tb.Fatal(err, warnings)
	}
	found, err := newSearch(all, cert, now).configured(tb.Context(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	return found != nil
}

// NewOver returns a source that asks over a network of a test's.
func NewOver(
	tb testing.TB, cfg Config, dial func(ctx context.Context, network, address string) (net.Conn, error),
) *Source {
	tb.Helper()
	s, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	over := storeConfig(cfg, s.now)
	over.Dial = dial
	if s.store, err = certfetch.New(over); err != nil {
		tb.Fatal(err)
	}
	return s
}

// CloseStore has the source ask nobody any more.
func (s *Source) CloseStore() error { return s.store.Close() }
