package admission_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// A directory that may not be searched, or a database that is down, is not up from the start, and
// its status says why: otherwise the first machine that attests would find out. It also is up again
// before another machine attests.
func TestSourceThatCannotTellIsNotUpFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := sourcetest.NewFake(sourcetest.Fails(errOutage))
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
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

// staleList is a source that loads, and can tell only while good is true.
type staleList struct{ good atomic.Bool }

func (l *staleList) Check(context.Context, *sources.Evidence) (sources.Verdict, error) {
	if !l.good.Load() {
		return sources.Verdict{}, errOutage
	}
	return sources.Verdict{}, nil
}

func (*staleList) Load(context.Context) error { return nil }

func (*staleList) Schedule() sources.Schedule { return sources.Schedule{Every: time.Minute} }

// A list that could not tell when a machine attested, and has been loaded since, is up: the gauge
// used to stay at 0 until another machine attested, for whole nights.
func TestRecoveredListIsUpWithoutAnAttestation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &staleList{}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", l))
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

// A mount that hangs is probed once: if it were probed every half minute, no slot would be left
// for machines when it answers again.
func TestHungSourceIsProbedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		f := sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			<-hang
			return sources.Verdict{}, nil
		})
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
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

// changingError is the error of a source that has another time in it at each attempt.
type changingError struct {
	staleList
	texts []string
}

func (l *changingError) Load(context.Context) error {
	text := l.texts[0]
	if len(l.texts) > 1 {
		l.texts = l.texts[1:]
	}
	return errors.New(text)
}

// Errors of crypto/x509 contain the current time, and errors of package net a port that
// changes. If each were logged, other lines would be lost among them; a different failure is
// still logged.
func TestFailureThatDiffersByTheTimeIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		l := &changingError{texts: []string{
			"x509: certificate has expired or is not yet valid: current time 2026-11-29T20:00:00Z is after 2026-11-01T00:00:00Z",
			"x509: certificate has expired or is not yet valid: current time 2026-11-29T20:00:30Z is after 2026-11-01T00:00:00Z",
			"read tcp 10.0.0.1:40000->10.0.0.2:443: connection reset by peer",
			"read tcp 10.0.0.1:40002->10.0.0.2:443: connection reset by peer",
			"refresh did not return within 9.001s",
			"refresh did not return within 9.12s",
			"line 17: 63 characters",
			"line 18: 63 characters",
		}}
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", l))
		s.Start(t.Context(), nil)
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		log.wantLines(t, "20:00:00Z", "10.0.0.1:40000", "9.001s", "line 17", "line 18")
	})
}
