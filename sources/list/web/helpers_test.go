package web_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// No test leaves a connection or a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A source is a list of machines in front of an origin, as package httplist makes it.
type source struct {
	*list.List[*ekhashes.Document]
	origin *web.Origin
}

func (s *source) Check(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	d, err := s.Current()
	if err != nil {
		return sources.Verdict{}, err
	}
	return d.Verdict(ev.EKHash), nil
}

// configFor returns a configuration for the server.
func configFor(s *webtest.Server) web.Config {
	return web.Config{URL: s.ListURL(), CAPath: s.CAPath}
}

// newSource returns a source that hardly waits between requests.
func newSource(tb testing.TB, cfg web.Config) *source {
	tb.Helper()
	o, err := web.New(cfg)
	if err != nil {
		tb.Fatalf("New: %v", err)
	}
	o.SetRetryPause(time.Millisecond)
	l, err := list.New(func(data []byte) (*ekhashes.Document, error) {
		return ekhashes.Parse(data, ekhashes.Options{JSON: true})
	}, o, list.Config{Now: cfg.Now})
	if err != nil {
		tb.Fatal(err)
	}
	return &source{l, o}
}

// loaded returns a source that has loaded what the server has.
func loaded(tb testing.TB, cfg web.Config) *source {
	tb.Helper()
	s := newSource(tb, cfg)
	refresh(tb, s)
	return s
}

func refresh(tb testing.TB, s *source) {
	tb.Helper()
	if err := s.Load(tb.Context()); err != nil {
		tb.Fatalf("Load: %v", err)
	}
}

// A clock is set by tests.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Now()} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) move(d time.Duration) { c.now = c.now.Add(d) }
