package sources_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// A directory that may not be searched, or a database that is down, is not up from the
// first moment, with its reason: otherwise the first machine that comes finds out. It is
// up again without a machine that comes, too.
func TestSourceThatCannotTellIsNotUpFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := sourcetest.NewFake(sourcetest.Fails(errOutage))
		s := newSet(t, sources.AnyOf("x"), sources.Options{Log: slogOf(log)}, member("x", f))
		s.Start(t.Context(), nil)
		st := s.Status()[0]
		if st.Up() || st.Err == nil || !strings.Contains(st.Err.Error(), "no route to host") {
			t.Errorf("up %v, error %v", st.Up(), st.Err)
		}
		log.wantLines(t, "source cannot tell")
		f.Set(sourcetest.ListsNot())
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if st := s.Status()[0]; !st.Up() || st.Err != nil {
			t.Errorf("up %v, error %v", st.Up(), st.Err)
		}
		log.wantLines(t, "source can tell again")
		f.Set(sourcetest.Fails(errOutage))
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if st := s.Status()[0]; st.Up() {
			t.Error("a source that has failed since is up")
		}
		s.Close()
		n, _, _ := f.Calls()
		time.Sleep(time.Hour)
		if after, _, _ := f.Calls(); after != n {
			t.Error("it is asked after Close")
		}
	})
}

// staleList is a source that loads, and can tell only while what it has loaded is good.
type staleList struct{ good atomic.Bool }

func (l *staleList) Check(context.Context, *sources.Evidence) (sources.Verdict, error) {
	if !l.good.Load() {
		return sources.Verdict{}, errOutage
	}
	return sources.Verdict{}, nil
}

func (*staleList) Refresh(context.Context) error { return nil }

func (l *staleList) Run(ctx context.Context, refresh func() error) error {
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Minute):
			_ = refresh()
		case <-ctx.Done():
		}
	}
	return nil
}

// A list that could not tell when a machine came, and has loaded since, is up: the
// gauge used to stay at 0 until another machine came, for nights.
func TestRecoveredListIsUpWithoutAnAttestation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &staleList{}
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", l))
		s.Start(t.Context(), nil)
		attest(t, s, sourcetest.NewEvidence(t))
		if s.Status()[0].Up() {
			t.Error("a source that could not tell is up")
		}
		time.Sleep(61 * time.Second)
		if s.Status()[0].Up() {
			t.Error("a source that has loaded and cannot tell is up")
		}
		l.good.Store(true)
		time.Sleep(time.Minute)
		synctest.Wait()
		if st := s.Status()[0]; !st.Up() {
			t.Errorf("a source that has recovered is not up: %v", st.Err)
		}
	})
}

// A mount that hangs is asked once: one that were asked every half minute would
// have no slots left for machines when it answers again.
func TestHungSourceIsProbedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		f := sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			<-hang
			return sources.Verdict{}, nil
		})
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		time.Sleep(time.Hour)
		if n, _, _ := f.Calls(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		if st := s.Status()[0]; st.Up() || st.Stuck != 1 || st.Err == nil {
			t.Errorf("%+v", st)
		}
		close(hang)
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if st := s.Status()[0]; !st.Up() || st.Stuck != 0 {
			t.Errorf("%+v", st)
		}
	})
}
