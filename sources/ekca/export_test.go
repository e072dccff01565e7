package ekca

import (
	"crypto/x509"
	"testing"
	"time"
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

// CloseStore has the source ask nobody any more.
func (s *Source) CloseStore() error { return s.store.Close() }
