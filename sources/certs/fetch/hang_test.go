package fetch_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// A wire is to a server in memory, for the clock of a bubble.
type wire struct {
	dead atomic.Bool // it drops what it is sent
	body atomic.Pointer[string]
}

const hangingHost = "192.0.2.1"

func (w *wire) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if w.dead.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		if _, err := http.ReadRequest(bufio.NewReader(server)); err == nil {
			body := *w.body.Load()
			_, _ = fmt.Fprintf(server, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
	}()
	return client, nil
}

// over returns a Fetcher that asks over a wire, as it is configured for users, with
// its clock. It runs until the test ends, where run is set.
func (w *wire) over(t *testing.T, path string, run bool) (*fetch.Fetcher, *clock) {
	t.Helper()
	c := newClock()
	f, err := fetch.New(fetch.Config{Hosts: []string{hangingHost}, CachePath: path, Now: c.Now, Dial: w.dial})
	must(t, err)
	must(t, f.Load(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	if run {
		go func() { ended <- f.Run(ctx) }()
	} else {
		ended <- nil
	}
	t.Cleanup(func() {
		stop()
		must(t, errors.Join(<-ended, f.Close()))
		time.Sleep(time.Minute) // what was being connected to gives up
	})
	return f, c
}

func (w *wire) answer(body string) { w.body.Store(&body) }

// A server that drops packets is waited for as long as the caller likes; meanwhile, an old object
// is available. When somebody has waited for two seconds, everybody sees that the server is silent
// and need not wait. The request continues, and its result is kept. This applies to objects from
// memory and from disk, and with other requests in the queue.
func TestOldWhileTheServerHangs(t *testing.T) {
	for _, queued := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "cache.db")
			synctest.Test(t, func(t *testing.T) { oldWhileTheServerHangs(t, path, queued, restart) })
		}
	}
}

func oldWhileTheServerHangs(t *testing.T, path string, queued, restart bool) {
	t.Helper()
	w, url := &wire{}, "http://"+hangingHost+"/a.crt"
	w.answer("a certificate")
	f, c := w.over(t, path, !restart)
	wantGet(t, f, url, "a certificate")
	if restart {
		must(t, f.Close())
		f, c = w.over(t, path, true)
	}
	w.dead.Store(true)
	c.add(31 * 24 * time.Hour)
	wantOld(t, f, url, fetch.ErrNotAsked)
	if queued {
		for i := range 5 {
			go func() { _, _ = f.Get(t.Context(), fetch.Issuer, fmt.Sprintf("http://%s/%d", hangingHost, i), text) }()
		}
		synctest.Wait()
	}
	begun := time.Now()
	together(100, func(int) {
		ctx, cancel := context.WithTimeout(t.Context(), fetch.Patience)
		defer cancel()
		if got, err := f.Get(ctx, fetch.Issuer, url, text); err != nil || got.Stale == nil {
			t.Errorf("%+v, %v", got, err)
		}
	})
	if took := time.Since(begun); took != fetch.Patience {
		t.Errorf("it took %v", took)
	}
	wantOld(t, f, url, fetch.ErrSilent)
	time.Sleep(time.Minute)
	if n := f.Flights(); n != 0 {
		t.Errorf("%d requests are under way", n)
	}
	if got := wantGet(t, f, url, "a certificate"); got.Stale == nil { // the failure is remembered
		t.Errorf("%+v", got)
	}
	w.dead.Store(false)
	w.answer("a newer one")
	c.add(10 * time.Minute)
	if got := wantGet(t, f, url, "a newer one"); got.Stale != nil {
		t.Errorf("%+v", got)
	}
}

// wantOld fails unless there is an object whose time is over, and why there is nothing
// newer.
func wantOld(t *testing.T, f *fetch.Fetcher, url string, why error) {
	t.Helper()
	got, known, err := f.Cached(fetch.Issuer, url, text)
	if got == nil || known || err != nil || !errors.Is(got.Stale, why) {
		t.Errorf("%+v, %v, %v; want %v", got, known, err, why)
	}
}

// Without Run, a request for which nobody waits ends, and the next caller waits again. If there is
// no old object, a caller waits as long as the request takes.
func TestHangWithoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, url := &wire{}, "http://"+hangingHost+"/a.crt"
		w.answer("a certificate")
		f, c := w.over(t, "", false)
		wantGet(t, f, url, "a certificate")
		w.dead.Store(true)
		c.add(31 * 24 * time.Hour)
		for range 3 {
			begun := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), fetch.Patience)
			got, err := f.Get(ctx, fetch.Issuer, url, text)
			if cancel(); err != nil || got.Stale == nil || time.Since(begun) != fetch.Patience {
				t.Errorf("%v: %+v, %v", time.Since(begun), got, err)
			}
			wantOld(t, f, url, fetch.ErrNotAsked)
		}
		c.add(91 * 24 * time.Hour)
		wantCached(t, f, url, "")
		begun := time.Now()
		wantFail(t, f, url, "not finished within 10s")
		if took := time.Since(begun); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A hanging server does not make everybody wait: sixteen callers wait, and the others are told to
// retry, at once when the server has kept somebody waiting for two seconds. Old objects are used
// all the while, and renewed in turn.
func TestCrowdAtAHangingServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, old := &wire{}, "http://"+hangingHost+"/old.crt"
		w.answer("a certificate")
		f, c := w.over(t, "", true)
		wantGet(t, f, old, "a certificate")
		w.dead.Store(true)
		c.add(31 * 24 * time.Hour)
		begun := time.Now()
		var early, late atomic.Int64
		get := func(i int) (busy bool) {
			_, err := f.Get(t.Context(), fetch.Issuer, fmt.Sprintf("http://%s/%d", hangingHost, i%30), text)
			if err == nil {
				t.Error("it was answered")
			}
			return errors.Is(err, fetch.ErrNotAsked)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			together(100, func(i int) {
				switch busy := get(i); {
				case busy && time.Since(begun) == 2*time.Second:
					early.Add(1)
				case !busy:
					late.Add(1)
				}
			})
		}()
		time.Sleep(3 * time.Second)
		if early.Load() != 84 || late.Load() != 0 {
			t.Errorf("%d were sent away", early.Load())
		}
		for i := range 100 {
			if at := time.Now(); !get(1000+i) || time.Since(at) != 0 {
				t.Errorf("one who comes later is kept waiting for %v", time.Since(at))
			}
		}
		if got := wantGet(t, f, old, "a certificate"); got.Stale == nil {
			t.Errorf("%+v", got)
		}
		<-done
		if late.Load() != 16 {
			t.Errorf("%d had their answer", late.Load())
		}
		time.Sleep(time.Hour)
		w.dead.Store(false)
		w.answer("a newer one")
		c.add(time.Hour)
		wantGet(t, f, old, "a newer one")
	})
}

// The mirror is asked, whatever host a URL has.
func TestHost(t *testing.T) {
	f := open(t, fetch.Config{
		Hosts: []string{"pki.test"}, Mirror: "http://192.0.2.9:8080/", Bases: []string{"https://ek.test/a/"},
	})
	plain := open(t, fetch.Config{Hosts: []string{"pki.test:8080"}})
	for _, c := range []struct {
		f    *fetch.Fetcher
		kind fetch.Kind
		url  string
		want string
	}{
		{f, fetch.Issuer, "http://pki.test/a", "192.0.2.9"},
		{f, fetch.CRL.Of("a"), "http://pki.test/a", "192.0.2.9"},
		{f, fetch.EKCertificate, "https://ek.test/a/b", "ek.test"},
		{f, fetch.Issuer, "http://elsewhere.test/a", ""},
		{plain, fetch.CRL, "http://pki.test:8080/a", "pki.test"},
	} {
		if got := c.f.Host(c.kind, c.url); got != c.want {
			t.Errorf("%s %q: %q, want %q", c.kind, c.url, got, c.want)
		}
	}
}
