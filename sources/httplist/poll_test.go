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
		"asked": {"20", 50 * time.Second, 20 * time.Second, 20 * time.Second},
		"huge":  {"99999999999999999999999", 20 * time.Second, 20 * time.Second, 20 * time.Second},
		"past":  {"Mon, 02 Jan 2006 15:04:05 GMT", time.Hour, time.Second, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := webtest.NewServer(t, nil)
			o.Answer(http.StatusServiceUnavailable, "", "Retry-After", tt.value)
			cfg := configFor(o)
			cfg.PollInterval = tt.interval
			began := time.Now()
			set := admits(t, cfg)
			next := set.Status()[0].Next
			for next.IsZero() && time.Since(began) < time.Minute { // the first load has ended, and no other is scheduled yet
				runtime.Gosched()
				next = set.Status()[0].Next
			}
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
	until := func(list string, want policy.Outcome) time.Duration {
		begun := time.Now()
		o.Answer(http.StatusOK, list)
		for outcome(t, set, "one") != want {
			if time.Since(begun) > time.Minute {
				t.Fatalf("not seen: want %v", want)
			}
			runtime.Gosched()
		}
		return time.Since(begun)
	}
	var took time.Duration
	for range 5 { // a machine that is busy is late at times, and not each time
		if took = until(webtest.List(""), policy.Refused); took <= cfg.PollInterval+2*time.Second {
			return
		}
		until(webtest.List("", "one"), policy.Challenge)
	}
	t.Errorf("not seen before %v", took)
}

// A Set is closed in the middle of a poll that hangs.
func TestCloseInAPoll(t *testing.T) {
	var took time.Duration
	for range 3 { // a machine that is busy is slow at times, and not each time
		if took = closeInAPoll(t); took <= 4*time.Second { // a source that does not end is left after 5
			return
		}
	}
	t.Errorf("it took %v", took)
}

// closeInAPoll returns how long Close takes while the server hangs.
func closeInAPoll(t *testing.T) time.Duration {
	t.Helper()
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
	took := time.Since(begun)
	<-started
	return took
}
