package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// No test leaves a connection or a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// A clock stands still until it is set.
type clock struct{ now atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	now := start
	c.now.Store(&now)
	return c
}

func (c *clock) Now() time.Time { return *c.now.Load() }

func (c *clock) add(d time.Duration) {
	now := c.Now().Add(d)
	c.now.Store(&now)
}

// An origin is a real web server whose answer can be changed.
type origin struct {
	*httptest.Server
	handler  atomic.Pointer[http.HandlerFunc]
	requests atomic.Int64
	paths    sync.Map // asked for
}

// newOrigin starts a server at an address of this machine, 127.0.0.1:0 say.
func newOrigin(tb testing.TB, address string, secure ...bool) *origin {
	tb.Helper()
	o := &origin{}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.requests.Add(1)
		o.paths.Store(r.URL.RequestURI(), true)
		(*o.handler.Load())(w, r)
	}))
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", address)
	must(tb, err)
	o.Listener.Close()
	o.Listener = l
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.answer(http.StatusOK, "a certificate")
	if len(secure) > 0 {
		o.StartTLS()
	} else {
		o.Start()
	}
	tb.Cleanup(func() {
		o.CloseClientConnections()
		o.Close()
	})
	return o
}

func local(tb testing.TB) *origin {
	tb.Helper()
	return newOrigin(tb, "127.0.0.1:0")
}

// host returns the server's host and port.
func (o *origin) host() string { return o.Listener.Addr().String() }

func (o *origin) at(path string) string { return o.URL + path }

// serve sets what the server does.
func (o *origin) serve(f http.HandlerFunc) { o.handler.Store(&f) }

// answer makes the server answer with one body.
func (o *origin) answer(status int, body string, headers ...string) {
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// hang makes the server answer nobody until the test ends or the client has gone.
// What it returns is told of each request.
func (o *origin) hang(tb testing.TB) <-chan string {
	tb.Helper()
	asked, end := make(chan string, 4096), make(chan struct{})
	tb.Cleanup(func() { close(end) })
	o.serve(func(_ http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		select {
		case <-r.Context().Done():
		case <-end:
		}
	})
	return asked
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// open returns a Fetcher, which is closed when the test ends.
func open(tb testing.TB, cfg fetch.Config) *fetch.Fetcher {
	tb.Helper()
	cfg.Patience = time.Minute // on a machine that is busy, a server that is well answers late
	f, err := fetch.New(cfg)
	must(tb, err)
	f.Hurry(time.Minute, time.Millisecond)
	tb.Cleanup(func() { f.Close() })
	return f
}

// asking returns a Fetcher that may ask the servers.
func asking(tb testing.TB, origins ...*origin) *fetch.Fetcher {
	tb.Helper()
	var cfg fetch.Config
	for _, o := range origins {
		cfg.Hosts = append(cfg.Hosts, o.host())
	}
	return open(tb, cfg)
}

// text is a Parse that accepts bodies that do not begin with a tag.
func text(body []byte) (any, time.Time, error) {
	if strings.HasPrefix(string(body), "<") {
		return nil, time.Time{}, errors.New("it is no certificate")
	}
	return string(body), time.Time{}, nil
}

// until returns a Parse that has an object kept up to some time.
func until(t time.Time) fetch.Parse {
	return func(body []byte) (any, time.Time, error) { return string(body), t, nil }
}

// wantGet fails unless Get returns an object with this body.
func wantGet(tb testing.TB, f *fetch.Fetcher, url, body string) *fetch.Object {
	tb.Helper()
	o, err := f.Get(tb.Context(), fetch.Issuer, url, text)
	if err != nil || o.Value != body || string(o.Body) != body {
		tb.Fatalf("get %q: %+v, %v; want %q", url, o, err, body)
	}
	return o
}

// wantFail fails unless Get fails with this in its text, and nothing else.
func wantFail(tb testing.TB, f *fetch.Fetcher, url, problem string) error {
	tb.Helper()
	o, err := f.Get(tb.Context(), fetch.Issuer, url, text)
	if o != nil || err == nil || !strings.Contains(err.Error(), problem) {
		tb.Fatalf("get %q: %+v, %v; want an error with %q", url, o, err, problem)
	}
	return err
}

// wantCached fails unless what is kept is an object with this body, or where it is
// empty, nothing.
func wantCached(tb testing.TB, f *fetch.Fetcher, url, body string) {
	tb.Helper()
	o, kept, err := f.Cached(fetch.Issuer, url, text)
	if err != nil || kept != (body != "") || kept && o.Value != body {
		tb.Fatalf("cached %q: %+v, %v, %v; want %q", url, o, kept, err, body)
	}
}

// wantRequests fails unless the server was asked that often.
func (o *origin) wantRequests(tb testing.TB, n int64) {
	tb.Helper()
	if got := o.requests.Load(); got != n {
		tb.Fatalf("%d requests, want %d", got, n)
	}
}

// Many callers at once.
func together(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// eventually waits for something that is about to happen.
func eventually(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatal("in vain: " + what)
		}
	}
}

func numbered(o *origin, i int) string { return o.at(fmt.Sprintf("/%d.crt", i)) }
