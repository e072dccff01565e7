package admission_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// scripted returns a Load whose results are those of the script, in order; the last is
// repeated.
func scripted(script ...error) func(context.Context) error {
	var n atomic.Int64
	return func(context.Context) error {
		i := int(n.Add(1)) - 1
		return script[min(i, len(script)-1)]
	}
}

// TestStartLoadsAtTheSameTime: a configuration takes the time of its slowest source, not of all
// together.
func TestStartLoadsAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func() *sourcetest.LoadingFake {
			return &sourcetest.LoadingFake{OnLoad: func(context.Context) error {
				time.Sleep(3 * time.Second)
				return nil
			}}
		}
		s := newSet(t, policy.AnyOf("a", "b", "c"), admission.Options{},
			member("a", slow()), member("b", slow()), member("c", new(sourcetest.Fake)))
		begun := time.Now()
		s.Start(t.Context(), nil)
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("Start took %v", took)
		}
		s.Close()
	})
}

// TestStartIsBounded: a source that hangs while it loads delays Start until its context ends,
// and Close for 5 seconds; Load is called only once; and other sources can load.
func TestStartIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		var hung atomic.Int64
		stuck := &sourcetest.LoadingFake{
			When: sources.Schedule{Every: 10 * time.Second},
			OnLoad: func(context.Context) error {
				hung.Add(1)
				<-release
				return nil
			},
		}
		s := newSet(t, policy.AnyOf("stuck", "up"), admission.Options{Log: slogOf(log)},
			member("stuck", stuck), member("up", new(sourcetest.LoadingFake)))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begun := time.Now()
		s.Start(ctx, nil)
		if took := time.Since(begun); took != 10*time.Second {
			t.Errorf("Start took %v", took)
		}
		log.wantLines(t, "INFO source has loaded source=up",
			"WARN source is still loading; it cannot tell until it has loaded source=stuck")
		time.Sleep(25 * time.Second)
		if st := s.Status()[0]; st.Err == nil || st.Up() {
			t.Errorf("status %+v", st)
		}
		log.wantLines(t, "WARN source failed to load; it cannot tell until it loads "+
			"source=stuck kind=fake error=did not return within 30s",
			"error=1 earlier loads have not returned")
		time.Sleep(time.Hour)
		if n := hung.Load(); n != 1 {
			t.Errorf("%d loads were stuck at once", n)
		}
		s.Close()
		close(release)
	})
}

// TestCloseLeavesBehindWhatIsStuck: a source that does not end delays Close for 5 seconds.
func TestCloseLeavesBehindWhatIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		f := &sourcetest.LoadingFake{OnWatch: func(context.Context, func()) error {
			<-release
			return nil
		}}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		log.take()
		begun := time.Now()
		s.Close()
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("Close took %v", took)
		}
		log.wantLines(t, "WARN source is stuck: it has not stopped and is left behind source=x")
		close(release)
	})
}

// TestStuckLoadRecovers: when a load returns long after its deadline, the source is
// loaded again at once.
func TestStuckLoadRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		f := &sourcetest.LoadingFake{OnLoad: func(context.Context) error {
			<-release
			return nil
		}}
		o := admission.Options{Log: slogOf(log), LoadTimeout: time.Second}
		s := newSet(t, policy.AnyOf("x"), o, member("x", f))
		begun := time.Now()
		s.Start(t.Context(), nil)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("Start took %v", took)
		}
		time.Sleep(30 * time.Minute)
		log.take()
		close(release)
		time.Sleep(2 * time.Second)
		if err := s.Status()[0].Err; err != nil {
			t.Errorf("after it has loaded: %v", err)
		}
		log.wantLines(t, "INFO source has recovered")
		s.Close()
	})
}

// TestLoadIsLoggedOnChange: the log tells once when a source begins to fail, fails in another
// way and recovers, and not at every attempt for a whole night.
func TestLoadIsLoggedOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		bad, worse := errors.New("line 3: bad"), errors.New("line 4: worse")
		f := &sourcetest.LoadingFake{
			When:   sources.Schedule{Every: time.Second},
			OnLoad: scripted(bad, bad, worse, nil, nil, bad, bad, nil),
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Minute)
		log.wantLines(t,
			"WARN source failed to load; it cannot tell until it loads source=x kind=fake error=line 3: bad",
			"WARN source failed to load; it cannot tell until it loads source=x kind=fake error=line 4: worse",
			"INFO source has recovered",
			"WARN source failed to load; the last good data stays in use source=x kind=fake error=line 3: bad",
			"INFO source has recovered")
		if err := s.Status()[0].Err; err != nil {
			t.Errorf("after a recovery: %v", err)
		}
		s.Close()
		log.wantLines(t)
	})
}

// TestLoadFailsWhileACacheServes: a server that restarts while the origin is down, and uses what an
// earlier process has cached, does not log that it cannot tell.
func TestLoadFailsWhileACacheServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{
			OnLoad:   scripted(errors.New("down")),
			OnStatus: func() sources.Status { return sources.Status{Loaded: time.Now()} },
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		log.wantLines(t,
			"WARN source failed to load; the last good data stays in use source=x kind=fake error=down")
		s.Close()
	})
}

// polls runs a source whose loads take a time and have these results, and returns the times
// from one load to the next.
func polls(t *testing.T, every, took time.Duration, outcomes ...error) (waits []time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		last := time.Now()
		f := &sourcetest.LoadingFake{When: sources.Schedule{Every: every}}
		f.OnLoad = func(context.Context) error {
			if len(waits) == len(outcomes) {
				return nil
			}
			waits = append(waits, time.Since(last))
			last = time.Now()
			time.Sleep(took)
			if len(waits) == len(outcomes) {
				close(ended)
			}
			return outcomes[len(waits)-1]
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		<-ended
		s.Close()
		if next := s.Status()[0].Next; !next.IsZero() {
			t.Errorf("the Set is closed, and the next poll is at %v", next)
		}
	})
	return waits
}

// TestInterval: the time from one load to the next is never longer than the interval, however
// long a load takes, and the servers of a fleet do not load in step.
func TestInterval(t *testing.T) {
	const interval = 30 * time.Second
	for _, took := range []time.Duration{0, time.Second, 25 * time.Second} {
		different := map[time.Duration]bool{}
		waits := polls(t, interval, took, make([]error, 100)...)
		if waits[0] != 0 {
			t.Errorf("a source that has loaded nothing waits for %v", waits[0])
		}
		for _, w := range waits[1:] {
			different[w] = true
			if w > interval || w < interval*9/10 {
				t.Errorf("loads after %v, which takes %v", w, took)
			}
		}
		if len(different) < 50 {
			t.Errorf("there are %d different intervals of 99", len(different))
		}
	}
}

// TestAfterFailures: after a failure attempts are made sooner, but not in a storm. An origin
// may ask for patience up to the interval; if it could ask for more, it could freeze a list.
func TestAfterFailures(t *testing.T) {
	failed := errors.New("failed")
	later, never := sources.Later(failed, 7*time.Second), sources.Later(failed, time.Hour)
	waits := polls(t, 30*time.Second, 0,
		failed, failed, failed, failed, failed, failed, failed, failed, nil, failed, failed, later, never, failed)
	want := []float64{0, 1, 2, 4, 8, 16, 30, 30, 30, 30, 1, 2, 7, 30} // seconds
	for i, w := range waits {
		if s := w.Seconds(); s > want[i] || s < want[i]*0.9 {
			t.Errorf("load %d comes after %v, want about %v s", i, w, want[i])
		}
	}
}

// TestChangesAreFollowed: a thousand changes in a moment cause one load, and changes that never
// end do not postpone it for ever.
func TestChangesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads atomic.Int64
		tell := make(chan struct{})
		f := &sourcetest.LoadingFake{
			OnLoad: func(context.Context) error { loads.Add(1); return nil },
			OnWatch: func(ctx context.Context, changed func()) error {
				for {
					select {
					case <-tell:
						changed()
					case <-ctx.Done():
						return nil
					}
				}
			},
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		for range 1000 {
			tell <- struct{}{}
		}
		time.Sleep(200 * time.Millisecond)
		if n := loads.Load(); n != 2 {
			t.Errorf("%d loads after one change", n)
		}
		for range 30 {
			tell <- struct{}{}
			time.Sleep(90 * time.Millisecond)
		}
		if n := loads.Load(); n < 4 || n > 6 {
			t.Errorf("%d loads in three seconds of changes", n-2)
		}
		tell <- struct{}{}
		synctest.Wait() // it ends in the middle of waiting for quiet
		s.Close()
	})
}

// watcher is a Watcher that loads nothing.
type watcher struct {
	sourcetest.Fake
	watch func(context.Context, func()) error
}

func (w *watcher) Watch(ctx context.Context, changed func()) error { return w.watch(ctx, changed) }

// TestWatchIsRestarted: a Watch that panics, returns or ends its goroutine does not freeze a
// list for ever, and a Watch that does so at once is not called in a tight loop.
func TestWatchIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		var calls []time.Duration
		begun := time.Now()
		f := &watcher{watch: func(ctx context.Context, changed func()) error {
			changed()
			calls = append(calls, time.Since(begun))
			switch len(calls) {
			case 1:
				panic("a fault")
			case 2:
				return errOutage
			case 3:
				runtime.Goexit()
			case 4:
				return &panicking{}
			case 5:
				time.Sleep(2 * time.Minute) // well for a while: the next pause is short again
				return nil
			}
			<-ctx.Done()
			return nil
		}}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		at := make([]float64, len(calls))
		for i, c := range calls {
			at[i] = c.Seconds()
		}
		if want := []float64{0, 1, 3, 7, 15, 15 + 120 + 1}; !slices.Equal(at, want) {
			t.Errorf("Watch was called at %v, want %v", at, want)
		}
		log.wantLines(t, "error=panic: a fault stack=", "error=no route to host",
			"error=the source ended its goroutine", "source stopped following its data",
			"error=returned before it was asked to stop in=1s")
		s.Close()
		log.wantLines(t)
	})
}

// TestWatchThatFailsAtOnceIsPaced: the pause grows to a minute and no more, and
// Close does not wait for its end.
func TestWatchThatFailsAtOnceIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		f := &watcher{watch: func(context.Context, func()) error {
			calls.Add(1)
			return errOutage
		}}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Hour + time.Second)
		if n := calls.Load(); n < 60 || n > 70 {
			t.Errorf("Watch was called %d times in an hour", n)
		}
		begun := time.Now()
		s.Close()
		if took := time.Since(begun); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

// TestErrorsThatPanicWhileLoading: the error of a Load is the source's own code too. If its
// Error method panics, that must not end the process, not even when the error is compared with
// the one before.
func TestErrorsThatPanicWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{OnLoad: func(context.Context) error { return &panicking{} }}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		<-time.After(5 * time.Second)
		if err := s.Status()[0].Err; err == nil || !strings.Contains(err.Error(), "PANIC") {
			t.Errorf("status: %v", err)
		}
		s.Close()
		if lines := strings.Join(log.take(), "\n"); !strings.Contains(lines, "source failed to load") {
			t.Errorf("the log lacks the failure:\n%s", lines)
		}
	})
}

// told returns a source that is told of a change when next receives.
func told(next chan struct{}) *sourcetest.LoadingFake {
	return &sourcetest.LoadingFake{OnWatch: func(ctx context.Context, changed func()) error {
		for range next {
			changed()
		}
		<-ctx.Done()
		return nil
	}}
}

// follow tells a source of a change and waits until it has been followed.
func follow(next chan struct{}) {
	next <- struct{}{}
	time.Sleep(150 * time.Millisecond)
	synctest.Wait()
}

// TestStatus: what every source serves can be asked for at any time, and what it leaves out is
// logged when that changes, within a limit.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		loaded := time.Now()
		var status atomic.Pointer[sources.Status]
		status.Store(&sources.Status{Loaded: loaded, Entries: 3, Warnings: []string{"a.pem: expired"}})
		next := make(chan struct{})
		f := told(next)
		f.OnStatus = func() sources.Status { return *status.Load() }
		s := newSet(t, policy.AnyOf("x", "plain"), admission.Options{Log: slogOf(log)},
			member("x", f), member("plain", new(sourcetest.Fake)))
		s.Start(t.Context(), nil)
		st := s.Status()
		if st[0].Name != "plain" || st[0].Kind != "fake" || !st[0].Loaded.IsZero() {
			t.Errorf("status %+v", st[0])
		}
		if st[1].Name != "x" || st[1].Entries != 3 || st[1].Loaded != loaded || len(st[1].Warnings) != 1 {
			t.Errorf("status %+v", st[1])
		}
		log.wantLines(t, "INFO source has loaded", "INFO source serves source=x kind=fake entries=3",
			"warning=a.pem: expired")
		follow(next)
		log.wantLines(t)
		status.Store(&sources.Status{Loaded: loaded, Entries: 3, Warnings: make([]string, 30)})
		follow(next)
		if lines := log.take(); len(lines) != 21 || !strings.Contains(lines[20], "number=10") {
			t.Errorf("%d lines", len(lines))
		}
		status.Store(&sources.Status{Loaded: loaded, Entries: 4})
		follow(next)
		log.wantLines(t, "entries=4", "INFO source no longer needs attention")
		close(next)
		s.Close()
	})
}

// TestChangesAreTold: a program that shows the status of sources is told of each change that an
// operator would look for, and can tell a healthy source from another.
func TestChangesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int64
		release, next := make(chan struct{}), make(chan struct{})
		var serial atomic.Uint64
		serial.Store(7)
		log := newJournal()
		f := told(next)
		f.OnLoad = scripted(errOutage, nil, nil, errOutage)
		f.OnStatus = func() sources.Status { return sources.Status{Serial: serial.Load()} }
		o := admission.Options{Log: slogOf(log), Changed: func() { changes.Add(1) }}
		s := newSet(t, policy.AnyOf("x"), o, member("x", f))
		want := func(when string, up bool) {
			t.Helper()
			synctest.Wait()
			if st := s.Status()[0]; changes.Swap(0) == 0 || st.Up() != up || !st.Loads {
				t.Errorf("%s: up %v, or nobody was told: %+v", when, st.Up(), st)
			}
		}
		s.Start(t.Context(), nil)
		want("the first load fails", false)
		if st := s.Status()[0]; !st.Started.Equal(time.Now()) || st.Failed != 1 || st.Refreshed != 0 {
			t.Errorf("status %+v", st)
		}
		follow(next)
		want("the next one does not", true)
		log.take()
		serial.Store(8)
		follow(next)
		want("a newer list", true)
		log.wantLines(t, "INFO source serves source=x kind=fake entries=0 serial=8")
		follow(next)
		want("an outage", false)

		f.Set(sourcetest.Hangs(release, sourcetest.ListsNot()))
		attest(t, s, sourcetest.NewEvidence(t))
		want("a check is stuck, and the source cannot tell", false)
		close(release)
		want("it is not any more", false)
		attest(t, s, sourcetest.NewEvidence(t))
		want("it can tell again", false)
		attest(t, s, sourcetest.NewEvidence(t))
		if n := changes.Load(); n != 0 {
			t.Errorf("%d changes where there is none", n)
		}
		close(next)
		s.Close()
	})
}

// TestPanicsWhileLoading: a panic in Load or in Status is an error of that
// source, with its stack in the log.
func TestPanicsWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{
			OnLoad:   func(context.Context) error { panic("while loading") },
			OnStatus: func() sources.Status { panic("while reporting") },
		}
		gone := &sourcetest.LoadingFake{OnLoad: func(context.Context) error {
			runtime.Goexit()
			return nil
		}}
		s := newSet(t, policy.AnyOf("x", "y"), admission.Options{Log: slogOf(log)},
			member("x", f), member("y", gone))
		s.Start(t.Context(), nil)
		lines := strings.Join(log.take(), "\n")
		for _, want := range []string{
			"source=x kind=fake error=panic: while loading stack=",
			"error=report the status: panic: while reporting stack=",
			"source=y kind=fake error=the source ended its goroutine",
		} {
			if !strings.Contains(lines, want) {
				t.Errorf("the log lacks %q:\n%s", want, lines)
			}
		}
		st := s.Status()
		if st[0].Err == nil || !strings.Contains(st[0].Err.Error(), "while reporting") {
			t.Errorf("status %+v", st[0])
		}
		if st[1].Err == nil || !strings.Contains(st[1].Err.Error(), "ended its goroutine") {
			t.Errorf("status %+v", st[1])
		}
		s.Close()
	})
}

// TestLoadHasItsDeadline: a load that obeys its context fails with its own error, before the
// Set abandons it.
func TestLoadHasItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &sourcetest.LoadingFake{OnLoad: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s := newSet(t, policy.AnyOf("x"), admission.Options{LoadTimeout: time.Second}, member("x", f))
		begun := time.Now()
		s.Start(t.Context(), nil)
		if took := time.Since(begun); took >= time.Second || !errors.Is(s.Status()[0].Err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", took, s.Status()[0].Err)
		}
		s.Close()
	})
}

// TestCloseWhileLoading: a shutdown in the middle of a configuration ends both.
func TestCloseWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{OnLoad: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		var both sync.WaitGroup
		begun := time.Now()
		both.Go(func() { s.Start(t.Context(), nil) })
		synctest.Wait()
		both.Go(s.Close)
		both.Go(s.Close)
		both.Wait()
		if took := time.Since(begun); took != 0 {
			t.Errorf("took %v", took)
		}
		log.wantLines(t) // a load that a shutdown ends has not failed
	})
}
