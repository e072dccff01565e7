package httplist_test

import (
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// No test leaves a connection or a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// configFor returns a configuration for the server.
func configFor(s *webtest.Server) httplist.Config {
	return httplist.Config{URL: s.ListURL(), CAPath: s.CAPath}
}

func newSource(tb testing.TB, cfg httplist.Config) *httplist.Source {
	tb.Helper()
	s, err := httplist.New(cfg)
	if err != nil {
		tb.Fatalf("New: %v", err)
	}
	return s
}

// loaded returns a source that has loaded what the server has.
func loaded(tb testing.TB, cfg httplist.Config) *httplist.Source {
	tb.Helper()
	s := newSource(tb, cfg)
	refresh(tb, s)
	return s
}

// fromCache returns a source that serves from its cache, while the server is of no use:
// that is told as the error of Load.
func fromCache(tb testing.TB, cfg httplist.Config, says string) *httplist.Source {
	tb.Helper()
	s := newSource(tb, cfg)
	webtest.WantError(tb, s.Load(tb.Context()), says)
	return s
}

func refresh(tb testing.TB, s *httplist.Source) {
	tb.Helper()
	if err := s.Load(tb.Context()); err != nil {
		tb.Fatalf("Load: %v", err)
	}
}

// fails makes the server answer that it has no list. An attempt ends with that at once, while it
// makes a refused request again after a pause.
func fails(s *webtest.Server) { s.Answer(http.StatusNotFound, "") }
