package sources_test

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
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// scripted returns a Refresh that ends as the script says, and as its last entry
// from then on.
func scripted(script ...error) func(context.Context) error {
	var n atomic.Int64
	return func(context.Context) error {
		i := int(n.Add(1)) - 1
		return script[min(i, len(script)-1)]
	}
}

// TestStartLoadsAtTheSameTime: the time that a configuration takes is that of
// its slowest source, not of all together.
func TestStartLoadsAtTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func() *sourcetest.LoadingFake {
			return &sourcetest.LoadingFake{OnRefresh: func(context.Context) error {
				time.Sleep(3 * time.Second)
				return nil
			}}
		}
		s := newSet(t, sources.AnyOf("a", "b", "c"), sources.Options{},
			member("a", slow()), member("b", slow()), member("c", new(sourcetest.Fake)))
		begun := time.Now()
		s.Start(t.Context(), nil)
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("Start took %v", took)
		}
		s.Close()
	})
}

// TestStartIsBounded: a source that hangs while it loads holds Start until its
// context ends and Close for 5 seconds, is asked to load only once, and cannot
// keep another from loading.
func TestStartIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		var hung atomic.Int64
		stuck := &sourcetest.LoadingFake{
			OnRefresh: func(context.Context) error {
				hung.Add(1)
				<-release
				return nil
			},
			OnRun: func(ctx context.Context, refresh func() error) error {
				for range 3 {
					if err := refresh(); err == nil || !strings.Contains(err.Error(), "still running") {
						t.Errorf("refresh beside one that is stuck: %v", err)
					}
				}
				<-ctx.Done()
				return nil
			},
		}
		s := newSet(t, sources.AnyOf("stuck", "up"), sources.Options{Log: slogOf(log)},
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
		time.Sleep(time.Minute)
		if st := s.Status()[0]; st.Err == nil || st.Err.Error() != "refresh did not return within 30s" {
			t.Errorf("status %+v", st)
		}
		log.wantLines(t, "WARN source failed to load; it cannot tell until it loads "+
			"source=stuck kind=fake error=refresh did not return within 30s")

		begun = time.Now()
		s.Close()
		if took := time.Since(begun); took != 5*time.Second {
			t.Errorf("Close took %v", took)
		}
		log.wantLines(t, "WARN source is stuck: it has not stopped and is left behind source=stuck")
		close(release)
		synctest.Wait()
		if n := hung.Load(); n != 1 {
			t.Errorf("%d loads were stuck at once", n)
		}
		log.wantLines(t)
	})
}

// TestStuckRefreshRecovers: a load that returns long after its deadline counts
// all the same, and loading goes on.
func TestStuckRefreshRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		f := &sourcetest.LoadingFake{
			OnRefresh: func(context.Context) error {
				<-release
				return nil
			},
			OnRun: func(ctx context.Context, refresh func() error) error {
				<-release
				synctest.Wait()
				if err := refresh(); err != nil {
					t.Errorf("refresh: %v", err)
				}
				<-ctx.Done()
				return nil
			},
		}
		o := sources.Options{Log: slogOf(log), RefreshTimeout: time.Second}
		s := newSet(t, sources.AnyOf("x"), o, member("x", f))
		begun := time.Now()
		s.Start(t.Context(), nil)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("Start took %v", took)
		}
		close(release)
		time.Sleep(time.Second)
		if err := s.Status()[0].Err; err != nil {
			t.Errorf("after it has loaded: %v", err)
		}
		log.wantLines(t, "WARN source failed to load", "INFO source has recovered")
		s.Close()
	})
}

// TestRefreshIsLoggedOnChange: the log tells when a source begins to fail, fails
// otherwise and recovers, once each, rather than at every attempt for a night.
func TestRefreshIsLoggedOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		bad, worse := errors.New("line 3: bad"), errors.New("line 4: worse")
		f := &sourcetest.LoadingFake{
			OnRefresh: scripted(bad, bad, worse, nil, nil, bad, bad, nil),
			OnRun: func(ctx context.Context, refresh func() error) error {
				for range 7 {
					_ = refresh()
				}
				<-ctx.Done()
				return nil
			},
		}
		s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		synctest.Wait()
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

// refresherOnly is a Refresher and nothing else.
type refresherOnly struct {
	sourcetest.Fake
	refresh func(context.Context) error
}

func (r *refresherOnly) Refresh(ctx context.Context) error { return r.refresh(ctx) }

// runnerOnly is a Runner and nothing else.
type runnerOnly struct {
	sourcetest.Fake
	run func(context.Context, func() error) error
}

func (r *runnerOnly) Run(ctx context.Context, refresh func() error) error { return r.run(ctx, refresh) }

// TestFirstLoadIsTriedAgain: a source that only loads is not lost for good by
// one bad moment at the start; once it has loaded it is left alone.
func TestFirstLoadIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls []time.Duration
		begun := time.Now()
		script := scripted(errOutage, errOutage, errOutage, nil)
		f := &refresherOnly{refresh: func(ctx context.Context) error {
			calls = append(calls, time.Since(begun))
			return script(ctx)
		}}
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(calls) != 4 || calls[1] != time.Second || calls[2] != 3*time.Second || calls[3] != 7*time.Second {
			t.Errorf("loaded at %v", calls)
		}
		s.Close()
	})
}

// TestCloseEndsTheWaitForTheNextTry: a source that has never loaded does not
// hold Close.
func TestCloseEndsTheWaitForTheNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, sources.AnyOf("x"), sources.Options{},
			member("x", &refresherOnly{refresh: scripted(errOutage)}))
		s.Start(t.Context(), nil)
		begun := time.Now()
		s.Close()
		if took := time.Since(begun); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

// TestRunIsRestarted: a Run that panics, returns or ends its goroutine does not
// freeze a list for ever, and one that does so at once is not called in a loop.
func TestRunIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		var calls []time.Duration
		begun := time.Now()
		f := &runnerOnly{run: func(ctx context.Context, refresh func() error) error {
			if err := refresh(); err != nil { // it has none, and Check can tell
				t.Error(err)
			}
			calls = append(calls, time.Since(begun))
			switch len(calls) {
			case 1:
				panic("a fault")
			case 2:
				return errOutage
			case 3:
				runtime.Goexit()
			case 4:
				return nil
			case 5:
				time.Sleep(2 * time.Minute) // well for a while: the next pause is short again
				return nil
			}
			<-ctx.Done()
			return nil
		}}
		s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		at := make([]float64, len(calls))
		for i, c := range calls {
			at[i] = c.Seconds()
		}
		if want := []float64{0, 1, 3, 7, 15, 15 + 120 + 1}; !slices.Equal(at, want) {
			t.Errorf("Run was called at %v, want %v", at, want)
		}
		log.wantLines(t, "error=panic: a fault stack=", "error=no route to host",
			"error=the source ended its goroutine", "error=returned before it was asked to stop",
			"error=returned before it was asked to stop in=1s")
		s.Close()
		log.wantLines(t)
	})
}

// TestRunThatFailsAtOnceIsPaced: the pause grows to a minute and no more, and
// Close does not wait for its end.
func TestRunThatFailsAtOnceIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		f := &runnerOnly{run: func(context.Context, func() error) error {
			calls.Add(1)
			return errOutage
		}}
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Hour + time.Second)
		if n := calls.Load(); n < 60 || n > 70 {
			t.Errorf("Run was called %d times in an hour", n)
		}
		begun := time.Now()
		s.Close()
		if took := time.Since(begun); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

// TestPanicsWhileLoading: a panic in Refresh or in Status is an error of that
// source, with its stack in the log.
func TestPanicsWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{
			OnRefresh: func(context.Context) error { panic("while loading") },
			OnStatus:  func() sources.Status { panic("while reporting") },
		}
		gone := &sourcetest.LoadingFake{OnRefresh: func(context.Context) error {
			runtime.Goexit()
			return nil
		}}
		s := newSet(t, sources.AnyOf("x", "y"), sources.Options{Log: slogOf(log)},
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

// TestErrorsThatPanicWhileLoading: the error of a Refresh or of a Run is the
// source's own code too. One that panics when it is asked for its text may not
// end the process, the second time either, when it is compared with the first.
func TestErrorsThatPanicWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{OnRefresh: func(context.Context) error { return &panicking{} }}
		f.OnRun = func(_ context.Context, refresh func() error) error {
			_ = refresh()
			return &panicking{}
		}
		s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		<-time.After(5 * time.Second)
		if err := s.Status()[0].Err; err == nil || !strings.Contains(err.Error(), "PANIC") {
			t.Errorf("status: %v", err)
		}
		s.Close()
		lines := strings.Join(log.take(), "\n")
		for _, want := range []string{"source failed to load", "source stopped following its data"} {
			if !strings.Contains(lines, want) {
				t.Errorf("the log lacks %q:\n%s", want, lines)
			}
		}
	})
}

// TestStatus: what every source serves can be asked for at any time, and what it
// leaves out is in the log when that changes, bounded.
func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		loaded := time.Now()
		var status atomic.Pointer[sources.Status]
		status.Store(&sources.Status{Loaded: loaded, Entries: 3, Warnings: []string{"a.pem: expired"}})
		next := make(chan struct{})
		f := &sourcetest.LoadingFake{
			OnStatus: func() sources.Status { return *status.Load() },
			OnRun: func(ctx context.Context, refresh func() error) error {
				for range next {
					_ = refresh()
				}
				<-ctx.Done()
				return nil
			},
		}
		s := newSet(t, sources.AnyOf("x", "plain"), sources.Options{Log: slogOf(log)},
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
		next <- struct{}{}
		synctest.Wait()
		log.wantLines(t)
		status.Store(&sources.Status{Loaded: loaded, Entries: 3, Warnings: make([]string, 30)})
		next <- struct{}{}
		synctest.Wait()
		if lines := log.take(); len(lines) != 21 || !strings.Contains(lines[20], "number=10") {
			t.Errorf("%d lines", len(lines))
		}
		status.Store(&sources.Status{Loaded: loaded, Entries: 4})
		next <- struct{}{}
		synctest.Wait()
		log.wantLines(t, "entries=4", "INFO source no longer needs attention")
		close(next)
		s.Close()
	})
}

// TestChangesAreTold: whoever shows the status of sources hears of each change
// that an operator would look for, and knows a source that is well from one that
// is not.
func TestChangesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes atomic.Int64
		release, next := make(chan struct{}), make(chan struct{})
		var serial atomic.Uint64
		serial.Store(7)
		log := newJournal()
		f := &sourcetest.LoadingFake{
			OnRefresh: scripted(errOutage, nil, nil, errOutage),
			OnStatus:  func() sources.Status { return sources.Status{Serial: serial.Load()} },
			OnRun: func(_ context.Context, refresh func() error) error {
				for range next {
					_ = refresh()
				}
				return nil
			},
		}
		o := sources.Options{Log: slogOf(log), Changed: func() { changes.Add(1) }}
		s := newSet(t, sources.AnyOf("x"), o, member("x", f))
		want := func(when string, n int64, up bool) {
			t.Helper()
			synctest.Wait()
			if st := s.Status()[0]; changes.Swap(0) != n || st.Up() != up || !st.Loads {
				t.Errorf("%s: up %v after another number of changes: %+v", when, st.Up(), st)
			}
		}
		want("before the start", 0, false)
		s.Start(t.Context(), nil)
		want("the first load fails", 1, false)
		if st := s.Status()[0]; !st.Started.Equal(time.Now()) || st.Failed != 1 || st.Refreshed != 0 {
			t.Errorf("status %+v", st)
		}
		next <- struct{}{}
		want("the next one does not", 1, true)
		log.take()
		serial.Store(8)
		next <- struct{}{}
		want("a newer list", 1, true)
		log.wantLines(t, "INFO source serves source=x kind=fake entries=0 serial=8")
		next <- struct{}{}
		want("an outage", 1, false)

		f.Set(sourcetest.Hangs(release, sourcetest.ListsNot()))
		attest(t, s, sourcetest.NewEvidence(t))
		want("a check is stuck, and the source cannot tell", 2, false)
		close(release)
		want("it is not any more", 1, false)
		attest(t, s, sourcetest.NewEvidence(t))
		want("it can tell again", 1, false)
		attest(t, s, sourcetest.NewEvidence(t))
		want("and still can", 0, false)
		close(next)
		s.Close()
	})
}

// TestRefreshHasItsDeadline: a load that obeys its context fails with its own
// error, before the Set gives it up.
func TestRefreshHasItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &refresherOnly{refresh: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s := newSet(t, sources.AnyOf("x"), sources.Options{RefreshTimeout: time.Second}, member("x", f))
		begun := time.Now()
		s.Start(t.Context(), nil)
		if took := time.Since(begun); took >= time.Second || !errors.Is(s.Status()[0].Err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", took, s.Status()[0].Err)
		}
		s.Close()
	})
}

// TestLateRefreshIsRefused: what a source has left running cannot load for it
// once it is stopped.
func TestLateRefreshIsRefused(t *testing.T) {
	var late func() error
	runs := make(chan struct{})
	var calls atomic.Int64
	f := &sourcetest.LoadingFake{
		OnRefresh: func(context.Context) error {
			calls.Add(1)
			return nil
		},
		OnRun: func(ctx context.Context, refresh func() error) error {
			late = refresh
			close(runs)
			<-ctx.Done()
			return nil
		},
	}
	s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
	s.Start(t.Context(), nil)
	<-runs
	s.Close()
	if err := late(); !errors.Is(err, context.Canceled) || calls.Load() != 1 {
		t.Errorf("%v after %d loads", err, calls.Load())
	}
}

// TestCloseWhileLoading: a shutdown in the middle of a configuration ends both.
func TestCloseWhileLoading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := &sourcetest.LoadingFake{OnRefresh: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", f))
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
		log.wantLines(t) // a load that is cut off by a shutdown has not failed
	})
}
