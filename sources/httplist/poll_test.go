package httplist_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// polls runs a source that has loaded nothing, with these outcomes of refreshes,
// and returns the times between them in a clock of its own.
func polls(t *testing.T, cfg httplist.Config, took time.Duration, outcomes ...error) (waits []time.Duration) {
	t.Helper()
	cfg.URL = "https://example.org/"
	synctest.Test(t, func(t *testing.T) {
		s := newSource(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		last := time.Now()
		_ = s.Run(ctx, func() error {
			if next := s.Status().Next; !next.Equal(time.Now()) {
				t.Errorf("polls at %v, where the status says %v", time.Now(), next)
			}
			waits = append(waits, time.Since(last))
			time.Sleep(took) // in synctest's clock
			last = time.Now().Add(-took)
			if len(waits) == len(outcomes) {
				cancel()
			}
			return outcomes[len(waits)-1]
		})
		if next := s.Status().Next; !next.IsZero() {
			t.Errorf("Run has ended, and the next poll is at %v", next)
		}
	})
	return waits
}

// From one poll to the next it is never longer than the interval, however long
// a poll takes, and a fleet does not ask in step.
func TestPollInterval(t *testing.T) {
	const interval = 30 * time.Second
	for _, took := range []time.Duration{0, time.Second, 25 * time.Second} {
		different := map[time.Duration]bool{}
		waits := polls(t, httplist.Config{}, took, make([]error, 100)...)
		if waits[0] != 0 {
			t.Errorf("a source without a list waits for %v", waits[0])
		}
		for _, w := range waits[1:] {
			different[w] = true
			if w > interval || w < interval*9/10 {
				t.Errorf("polls after %v, which takes %v", w, took)
			}
		}
		if len(different) < 50 {
			t.Errorf("there are %d different intervals of 99", len(different))
		}
	}
}

// Failures are followed by more attempts, sooner, and not by a storm.
func TestPollsAfterFailures(t *testing.T) {
	failed := errors.New("failed")
	waits := polls(t, httplist.Config{}, 0,
		failed, failed, failed, failed, failed, failed, failed, failed, nil, failed, failed)
	want := []float64{0, 1, 2, 4, 8, 16, 30, 30, 30, 30, 1} // seconds
	for i, w := range waits {
		if s := w.Seconds(); s > want[i] || s < want[i]*0.9 {
			t.Errorf("poll %d comes after %v, want about %v s", i, w, want[i])
		}
	}
}

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
			o := newOrigin(t, nil)
			o.answer(http.StatusServiceUnavailable, "", "Retry-After", tt.value)
			cfg := o.config()
			cfg.PollInterval = tt.interval
			s := newSource(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			var ended time.Time
			err := s.Run(ctx, func() error {
				if !ended.IsZero() {
					cancel()
					return nil
				}
				err := s.Refresh(ctx)
				wantError(t, err, "503 Service Unavailable")
				ended = time.Now()
				return err
			})
			waited := time.Since(ended)
			if err != nil || waited < tt.least*9/10 || waited > tt.most+2*time.Second {
				t.Errorf("error %v; polled again after %v, want %v to %v", err, waited, tt.least, tt.most)
			}
		})
	}
}

// A machine that is taken off the list is off it within the interval and two
// seconds.
func TestRemovalIsSeen(t *testing.T) {
	o := newOrigin(t, nil)
	o.answer(http.StatusOK, list("", "one"))
	cfg := o.config()
	cfg.PollInterval = time.Second
	s := loaded(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	removed := time.Now()
	o.answer(http.StatusOK, list(""))
	if err := s.Run(ctx, func() error {
		defer cancel()
		return s.Refresh(ctx)
	}); err != nil {
		t.Errorf("Run: %v", err)
	}
	if d := time.Since(removed); d > cfg.PollInterval+2*time.Second {
		t.Errorf("seen after %v", d)
	}
	wantListed(t, s)
}

// Run ends with its context, in the middle of a poll that hangs.
func TestRunEndsInAPoll(t *testing.T) {
	o := newOrigin(t, nil)
	asked := make(chan struct{})
	o.serve(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	s := newSource(t, o.config())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx, func() error { return s.Refresh(ctx) }) }()
	<-asked
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}
