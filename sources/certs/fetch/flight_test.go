package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// What is fetched is kept: the next caller gets it from memory, even if the server is gone.
func TestKept(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	wantCached(t, f, o.at("/a.crt"), "")
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	o.answer(http.StatusInternalServerError, "")
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	wantCached(t, f, o.at("/a.crt"), "a certificate")
	o.wantRequests(t, 1)
	// As another kind it is another answer.
	if _, kept, err := f.Cached(fetch.CRL, o.at("/a.crt"), text); kept || err != nil {
		t.Errorf("kept as a CRL: %v, %v", kept, err)
	}
	if s := f.Stats(); s.Objects != 1 || s.Failures != 0 || s.Bytes < 13 {
		t.Errorf("stats: %+v", s)
	}
}

// A hundred attestations that wait for one issuer cause one request.
func TestOneRequestForAllWhoWait(t *testing.T) {
	o := local(t)
	release := make(chan struct{})
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		_, _ = io.WriteString(w, "a certificate")
	})
	f := asking(t, o)
	url := o.at("/a.crt")
	var parses atomic.Int64
	go func() {
		defer close(release)
		eventually(t, "all wait", func() bool { return f.Waiting(fetch.Issuer, url) == 100 })
	}()
	together(100, func(int) {
		got, err := f.Get(t.Context(), fetch.Issuer, url, func(body []byte) (any, time.Time, error) {
			parses.Add(1)
			return string(body), time.Time{}, nil
		})
		if err != nil || got.Value != "a certificate" {
			t.Errorf("%+v, %v", got, err)
		}
	})
	o.wantRequests(t, 1)
	if parses.Load() != 1 {
		t.Errorf("the answer was read %d times", parses.Load())
	}
}

// If the first caller gives up, the later callers still get their answer from the same request.
func TestFirstWaiterGivesUp(t *testing.T) {
	o := local(t)
	release := make(chan struct{})
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		_, _ = io.WriteString(w, "a certificate")
	})
	f := asking(t, o)
	url := o.at("/a.crt")
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := f.Get(ctx, fetch.Issuer, url, text)
		first <- err
	}()
	eventually(t, "the first waits", func() bool { return f.Waiting(fetch.Issuer, url) == 1 })
	go func() {
		_, err := f.Get(t.Context(), fetch.Issuer, url, text)
		second <- err
	}()
	eventually(t, "both wait", func() bool { return f.Waiting(fetch.Issuer, url) == 2 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the second: %v", err)
	}
	o.wantRequests(t, 1)
}

// A request for which nobody waits is cancelled, and does not count as a failure of the server: the
// next caller starts a new one.
func TestDesertedRequestEnds(t *testing.T) {
	o := local(t)
	asked := o.hang(t)
	f := asking(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := f.Get(ctx, fetch.Issuer, o.at("/a.crt"), text); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	o.answer(http.StatusOK, "a certificate")
	wantGet(t, f, o.at("/a.crt"), "a certificate")
}

// A thousand machines ask for a thousand URLs at once. The server sees four requests at a time,
// requests to another server are not delayed, and what is available is returned.
func TestThousandURLs(t *testing.T) {
	flooded, other := newOrigin(t, "127.0.0.1:0"), newOrigin(t, "127.0.0.2:0")
	f := asking(t, flooded, other)
	wantGet(t, f, flooded.at("/kept.crt"), "a certificate")
	var now, most atomic.Int64
	enough := make(chan struct{})
	flooded.serve(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m; m = most.Load() {
			most.CompareAndSwap(m, n)
		}
		select {
		case <-enough:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, r.URL.Path)
	})
	ended := make(chan struct{})
	var good, busy atomic.Int64
	go func() {
		defer close(ended)
		together(1000, func(i int) {
			switch _, err := f.Get(t.Context(), fetch.Issuer, numbered(flooded, i), text); {
			case err == nil:
				good.Add(1)
			case errors.Is(err, fetch.ErrNotAsked) && strings.Contains(err.Error(), "too many"):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}()
	eventually(t, "the queue is full", func() bool { return f.Flights() == 512 && now.Load() == 4 })
	wantGet(t, f, flooded.at("/kept.crt"), "a certificate") // at once: the server answers nobody
	wantGet(t, f, other.at("/a.crt"), "a certificate")
	close(enough)
	<-ended
	if most.Load() > 4 {
		t.Errorf("%d requests at once", most.Load())
	}
	if good.Load() < 512 || good.Load()+busy.Load() != 1000 {
		t.Errorf("%d were answered, %d were told to try again", good.Load(), busy.Load())
	}
	// Who was turned away is not remembered as a failure.
	if s := f.Stats(); s.Failures != 0 {
		t.Errorf("%d failures", s.Failures)
	}
}

// Hosts that hang do not keep another host waiting, whatever waits for them.
func TestHangingHostsDoNotStarveAnother(t *testing.T) {
	var hosts []*origin
	asked := make([]<-chan string, 4)
	for i := range asked {
		hosts = append(hosts, newOrigin(t, fmt.Sprintf("127.0.0.%d:0", i+2)))
		asked[i] = hosts[i].hang(t)
	}
	good := local(t)
	f := asking(t, append(hosts, good)...)
	const all = 80
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		together(all, func(i int) { _, _ = f.Get(ctx, fetch.Issuer, numbered(hosts[i%4], i), text) })
	}()
	for range 4 {
		for i := range asked {
			<-asked[i]
		}
	}
	eventually(t, "all wait", func() bool { return f.Flights() == all })
	wantGet(t, f, good.at("/a.crt"), "a certificate")
	for _, h := range hosts {
		if n := h.requests.Load(); n != 4 {
			t.Errorf("%d requests to one host", n)
		}
	}
	cancel()
	<-ended
}

// A parser that panics on a hostile body stops nothing.
func TestPanicInParse(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	_, err := f.Get(t.Context(), fetch.Issuer, o.at("/a.crt"), func([]byte) (any, time.Time, error) {
		panic("out of range")
	})
	if err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("%v", err)
	}
	wantFail(t, f, o.at("/a.crt"), "out of range") // remembered
	o.wantRequests(t, 1)
}

// Close ends requests in progress. No server is asked afterwards, but what is kept is still
// returned.
func TestClose(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	wantGet(t, f, o.at("/kept.crt"), "a certificate")
	asked := o.hang(t)
	ended := make(chan error, 1)
	go func() {
		_, err := f.Get(t.Context(), fetch.Issuer, o.at("/a.crt"), text)
		ended <- err
	}()
	<-asked
	must(t, f.Close())
	if err := <-ended; !errors.Is(err, fetch.ErrNotAsked) {
		t.Errorf("%v", err)
	}
	if err := wantFail(t, f, o.at("/b.crt"), "try again"); !errors.Is(err, fetch.ErrNotAsked) {
		t.Errorf("%v", err)
	}
	wantGet(t, f, o.at("/kept.crt"), "a certificate")
}

// A caller whose context has ended causes no request.
func TestEndedContext(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Get(ctx, fetch.Issuer, o.at("/a.crt"), text); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	o.wantRequests(t, 0)
}

// While Run is running, a request continues even if nobody waits for it any longer: a slow server
// is asked once, not once by each caller that gives up.
func TestRunFinishesWhatWasBegun(t *testing.T) {
	o := local(t)
	asked, release := make(chan struct{}), make(chan struct{})
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-release
		_, _ = io.WriteString(w, "a certificate")
	})
	f := asking(t, o)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- f.Run(ctx) }()
	eventually(t, "Run is there", f.Running)
	impatient, giveUp := context.WithCancel(t.Context())
	go func() {
		<-asked
		giveUp()
	}()
	if _, err := f.Get(impatient, fetch.Issuer, o.at("/a.crt"), text); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(release)
	eventually(t, "the request is done", func() bool { return f.Flights() == 0 })
	wantCached(t, f, o.at("/a.crt"), "a certificate")
	stop()
	must(t, <-ran)
}

// When Run ends, requests that nobody waits for end with it.
func TestRunEnds(t *testing.T) {
	o := local(t)
	asked := o.hang(t)
	f := asking(t, o)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- f.Run(ctx) }()
	eventually(t, "Run is there", f.Running)
	impatient, giveUp := context.WithCancel(t.Context())
	go func() {
		<-asked
		giveUp()
	}()
	if _, err := f.Get(impatient, fetch.Issuer, o.at("/a.crt"), text); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if f.Flights() != 1 {
		t.Error("the request has ended before its time")
	}
	stop()
	must(t, <-ran)
	if f.Flights() != 0 {
		t.Error("a request goes on after Run has ended")
	}
}
