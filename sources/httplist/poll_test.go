package httplist_test

import (
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A server may ask for patience up to the interval, in either form; what it says
// else is not heard. A huge Retry-After would be a way to freeze a list.
func TestRetryAfter(t *testing.T) {
	for name, tt := range map[string]struct {
		value                 string
		interval, least, most time.Duration
	}{
		"asked": {"2", 5 * time.Second, 2 * time.Second, 2 * time.Second},
		"huge":  {"99999999999999999999999", time.Second, time.Second, time.Second},
		"past":  {"Mon, 02 Jan 2006 15:04:05 GMT", 5 * time.Second, time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := webtest.NewServer(t, nil)
			o.Answer(http.StatusServiceUnavailable, "", "Retry-After", tt.value)
			cfg := configFor(o)
			cfg.PollInterval = tt.interval
			began := time.Now()
			next := admits(t, cfg).Status()[0].Next
			if next.Before(began.Add(tt.least*8/10)) || next.After(time.Now().Add(tt.most)) {
				t.Errorf("the next poll is in %v, want %v to %v", next.Sub(began), tt.least, tt.most)
			}
		})
	}
}

// A machine that is taken off the list is off it within the interval and two
// seconds.
func TestRemovalIsSeen(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List("", "one"))
	cfg := configFor(o)
	cfg.PollInterval = time.Second
	set := admits(t, cfg)
	removed := time.Now()
	o.Answer(http.StatusOK, webtest.List(""))
	for outcome(t, set, "one") == policy.Challenge {
		if d := time.Since(removed); d > cfg.PollInterval+2*time.Second {
			t.Fatalf("not seen after %v", d)
		}
		runtime.Gosched()
	}
}

// A Set is closed in the middle of a poll that hangs.
func TestCloseInAPoll(t *testing.T) {
	o := webtest.NewServer(t, nil)
	asked := make(chan struct{})
	o.Serve(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	member := admission.Member{Name: "inventory", Kind: "http", Source: newSource(t, configFor(o))}
	set, err := admission.NewSet([]admission.Member{member}, policy.AnyOf("inventory"), admission.Options{})
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	go func() {
		defer close(started)
		set.Start(t.Context(), nil)
	}()
	<-asked
	begun := time.Now()
	set.Close()
	if d := time.Since(begun); d > 4*time.Second {
		t.Errorf("it took %v", d)
	}
	<-started
}
