package sourcetest

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// testConcurrent: Check answers from whole data while the data changes. The race detector does the
// rest.
func testConcurrent(tb run) {
	s := newSubject(tb, tb.h)
	steady, changing, stranger := s.evidence(tb), s.evidence(tb), s.evidence(tb)
	s.list(tb, steady)
	ctx, cancel := context.WithCancel(tb.Context())
	var work sync.WaitGroup
	if w, ok := s.source.(sources.Watcher); ok {
		work.Go(func() { _ = w.Watch(ctx, func() { _ = s.tryLoad(ctx) }) })
	}
	// The goroutines that ask never wait. If one processor is left over, answers of the network are
	// noticed at once, and loads over the network take a tenth of the time.
	for range max(runtime.GOMAXPROCS(0)-1, 1) {
		work.Go(func() {
			//nolint:contextcheck // ctx ends the loop, not a check
			askWhileChanging(tb, s, ctx.Done(), steady, changing, stranger)
		})
	}
	for range 50 {
		s.list(tb, changing)
		s.wantListed(tb, changing, true, "just listed")
		s.unlist(tb, changing)
		s.wantListed(tb, changing, false, "just listed no more")
	}
	cancel()
	within(tb, "Watch whose context has ended", work.Wait)
}

// askWhileChanging asks about a TPM that is always listed, a TPM that is listed at times and a
// TPM that never is, until done is closed or an answer is wrong.
func askWhileChanging(tb run, s *subject, done <-chan struct{}, steady, changing, stranger *sources.Evidence) {
	for !tb.Failed() {
		select {
		case <-done:
			return
		default:
		}
		s.wantListed(tb, steady, true, "while others change")
		s.wantListed(tb, stranger, false, "while others change")
		if _, err := s.check(tb, changing); err != nil {
			tb.Errorf("while it changes: cannot tell: %v", err)
		}
		if r, ok := s.source.(sources.Reporter); ok {
			_ = r.Status()
		}
		runtime.Gosched() // give the goroutine that changes the data a chance to run
	}
}

// testWatchEnds: when Watch has returned, nothing that it started is left.
func testWatchEnds(tb run) {
	goroutines, files := runtime.NumGoroutine(), openFiles()
	for range rounds {
		s := newSubject(tb, tb.h)
		w, ok := s.source.(sources.Watcher)
		if !ok {
			return
		}
		s.load(tb)
		ctx, cancel := context.WithCancel(tb.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = w.Watch(ctx, func() {})
		}()
		ev := s.evidence(tb)
		s.list(tb, ev)
		cancel()
		within(tb, "Watch whose context has ended", func() { <-ended })
		s.wantListed(tb, ev, true, "after Watch has ended")
	}
	settled := func() bool {
		return runtime.NumGoroutine()-goroutines < noise && openFiles()-files < noise
	}
	for begun := time.Now(); !settled(); runtime.Gosched() {
		if time.Since(begun) > tb.patience {
			tb.Errorf("after %d calls of Watch there are %d more goroutines and %d more open files",
				rounds, runtime.NumGoroutine()-goroutines, openFiles()-files)
			return
		}
	}
}

// testWatchTells: if Harness.Watches is set, Watch reports a change.
func testWatchTells(tb run) {
	s := newSubject(tb, tb.h)
	w, ok := s.source.(sources.Watcher)
	if !ok || !tb.h.Watches {
		return
	}
	s.load(tb)
	ctx, cancel := context.WithCancel(tb.Context())
	told, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.Watch(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	ev := s.evidence(tb)
	for _, listed := range []bool{true, false} {
		if listed {
			s.List(ev, s.attributes(ev))
		} else {
			s.Unlist(ev)
		}
		for late := time.After(tb.patience); ; {
			if v, err := s.check(tb, ev); err == nil && v.Listed == listed {
				break
			}
			select {
			case <-told:
				_ = s.tryLoad(ctx) // may find a file that is still being written
			case <-ended:
				tb.Fatalf("Watch returned before its context had ended")
			case <-late:
				tb.Fatalf("a change was not told within %v: listed should be %v", tb.patience, listed)
			}
		}
	}
}

// testSchedule: the schedule never changes, and is frequent enough to notice a change.
func testSchedule(tb run) {
	l, ok := newSubject(tb, tb.h).source.(sources.Loader)
	if !ok {
		return
	}
	if s := l.Schedule(); s.Every <= 0 || s != l.Schedule() {
		tb.Errorf("the schedule %+v, and %+v when asked again", s, l.Schedule())
	}
}

// testStatus: the status tells an operator whether the source serves data.
func testStatus(tb run) {
	s := newSubject(tb, tb.h)
	r, ok := s.source.(sources.Reporter)
	if !ok {
		return
	}
	_, loads := s.source.(sources.Loader)
	if st := r.Status(); loads && (!st.Loaded.IsZero() || st.Entries != 0) {
		tb.Errorf("before the first Load: %+v", st)
	}
	s.list(tb, s.evidence(tb))
	s.list(tb, s.evidence(tb))
	st := r.Status()
	if loads && (st.Loaded.IsZero() || st.Loaded.After(time.Now())) {
		tb.Errorf("loaded at %v", st.Loaded)
	}
	if loads && st.Entries < 2 { // a source that loads nothing does not count entries
		tb.Errorf("%d entries, where 2 are listed", st.Entries)
	}
	for _, w := range st.Warnings {
		if strings.TrimSpace(w) == "" {
			tb.Error("an empty warning")
		}
	}
}

// testInSet: alone in a Set, the source admits a TPM that it lists and refuses another.
func testInSet(tb run) {
	s := newSubject(tb, tb.h)
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.List(listed, s.attributes(listed))
	member := admission.Member{Name: "it", Kind: "kind", Source: s.source}
	set, err := admission.NewSet([]admission.Member{member}, policy.AnyOf("it"), admission.Options{})
	if err != nil {
		tb.Fatalf("NewSet: %v", err)
	}
	defer set.Close()
	set.Start(tb.Context(), nil)
	outcome := func(ev *sources.Evidence) policy.Decision {
		if d := set.BeforeChallenge(tb.Context(), ev); d.Outcome != policy.Challenge {
			return d
		}
		return set.AfterChallenge(tb.Context(), s.proven(ev))
	}
	if d := outcome(listed); d.Outcome != policy.Admitted {
		tb.Errorf("a listed TPM: %v: %s", d.Outcome, d.Explain())
	}
	if d := outcome(stranger); d.Outcome != policy.Refused {
		tb.Errorf("a stranger: %v: %s", d.Outcome, d.Explain())
	}
}
