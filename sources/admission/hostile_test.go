package admission_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// unprintable panics with itself when it is printed, which package fmt passes on.
type unprintable struct{}

func (unprintable) Error() string { panic(unprintable{}) }

// TestPanicsThatCannotBePrinted: a panic whose value panics again when its text is asked
// for may not end the process, wherever in a source it happens.
func TestPanicsThatCannotBePrinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := func() { panic(unprintable{}) }
		x := &sourcetest.LoadingFake{
			OnLoad:   func(context.Context) error { panics(); return nil },
			OnWatch:  func(context.Context, func()) error { panics(); return nil },
			OnStatus: func() sources.Status { panics(); return sources.Status{} },
		}
		x.Set(sourcetest.Panics(unprintable{}))
		y := sourcetest.NewFetchingFake(sourcetest.Panics(unprintable{}))
		z := sourcetest.NewFake(sourcetest.Fails(unprintable{}))
		s := newSet(t, policy.AnyOf("x", "y", "z"), admission.Options{},
			member("x", x), member("y", y), member("z", z))
		s.Start(t.Context(), nil)
		time.Sleep(time.Minute)
		if d := attest(t, s, sourcetest.NewEvidence(t)); d.Outcome != policy.Unavailable ||
			results(d) != "x=cannot_tell y=cannot_tell z=cannot_tell" {
			t.Errorf("%v: %s", d.Outcome, results(d))
		}
		if st := s.Status()[0]; st.Up() || st.Err == nil {
			t.Errorf("%+v", st)
		}
		s.Close()
	})
}

// closed is an error that must not be inspected after the source has returned it, like one that
// uses something that the source has closed by then.
type closed struct{ returned *atomic.Bool }

func (e closed) Error() string { return "no route to host" }

func (e closed) Unwrap() error {
	if e.returned.Load() {
		panic("used after it was closed")
	}
	return nil
}

// TestErrorsThatPanicWhenTheyAreLookedInto: logging, comparing or classifying an error of a source
// does not run the source's code.
func TestErrorsThatPanicWhenTheyAreLookedInto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var returned atomic.Bool
		err := closed{&returned}
		x := &sourcetest.LoadingFake{
			OnLoad:  func(context.Context) error { return err },
			OnWatch: func(context.Context, func()) error { return err },
		}
		x.Set(sourcetest.Fails(err))
		y := sourcetest.NewFake(sourcetest.Fails(err)) // which is probed
		s := newSet(t, policy.AnyOf("x", "y"), admission.Options{Changed: func() { returned.Store(true) }},
			member("x", x), member("y", y))
		s.Start(t.Context(), nil)
		time.Sleep(time.Minute)
		for _, st := range s.Status() {
			if st.Err == nil || st.Up() {
				t.Errorf("%s: %v", st.Name, st.Err)
			}
		}
		returned.Store(false)
		d := s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t))
		returned.Store(true)
		if results(d) != "x=cannot_tell y=cannot_tell" || !strings.Contains(d.Explain(), "no route to host") {
			t.Error(d.Explain())
		}
		s.Close()
	})
}

// TestStatusThatHangs: a source whose Status never returns, or ends its goroutine, is
// still loaded, and what the others serve is still told.
func TestStatusThatHangs(t *testing.T) {
	for name, status := range map[string]func(release chan struct{}) sources.Status{
		"hangs":         func(release chan struct{}) sources.Status { <-release; return sources.Status{} },
		"ends":          func(chan struct{}) sources.Status { runtime.Goexit(); return sources.Status{} },
		"hangs at last": nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release, loads := make(chan struct{}), atomic.Int64{}
				x := &sourcetest.LoadingFake{
					When:   sources.Schedule{Every: time.Minute},
					OnLoad: func(context.Context) error { loads.Add(1); return nil },
					OnStatus: func() sources.Status {
						if status != nil {
							return status(release)
						}
						if loads.Load() > 10 {
							<-release
						}
						return sources.Status{}
					},
				}
				s := newSet(t, policy.AnyOf("x", "y"), admission.Options{}, member("x", x), member("y", new(sourcetest.Fake)))
				s.Start(t.Context(), nil)
				time.Sleep(time.Hour)
				if n := loads.Load(); n < 60 {
					t.Errorf("%d loads in an hour", n)
				}
				if st := s.Status(); st[0].Err == nil || st[0].Up() || !st[1].Up() {
					t.Errorf("%+v", st)
				}
				close(release)
				s.Close()
			})
		})
	}
}

// TestEvidenceThatNobodyAsksAbout: while a source hangs, machines that another one lists
// are challenged without it. Their certificates were kept for the rest of the check's time
// for each call that waited for a slot, beyond every budget.
func TestEvidenceThatNobodyAsksAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := newSet(t, policy.AnyOf("hangs", "lists"), admission.Options{Slots: 1},
			member("hangs", sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.ListsNot()))),
			member("lists", sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))))
		s.Start(t.Context(), nil)
		ask := func() weak.Pointer[sources.Evidence] {
			ev := sourcetest.NewEvidence(t)
			if d := s.BeforeChallenge(t.Context(), ev); d.Outcome != policy.Challenge {
				t.Fatal(d.Outcome, d.Explain())
			}
			return weak.Make(ev)
		}
		ask() // takes the only slot
		kept := ask()
		synctest.Wait()
		runtime.GC()
		if kept.Value() != nil {
			t.Error("the evidence of a machine that was challenged is kept for a call that is never made")
		}
		close(release)
		s.Close()
	})
}

// TestAnswersKeepNothingOfTheSource: an error may hold whatever the source has parsed, 120
// KiB of a certificate among it; an answer is kept while the challenge is open.
func TestAnswersKeepNothingOfTheSource(t *testing.T) {
	s := newSet(t, policy.AnyOf("x", "y"), admission.Options{},
		member("x", sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{}, errors.Join(errOutage, certificateError{})
		})), member("y", sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))))
	d := s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t))
	if a := (certificateError{}); d.Outcome != policy.Challenge || errors.As(d.Answers[0].Err, &a) {
		t.Errorf("%v: %+v", d.Outcome, d.Answers[0].Err)
	}
}

// A certificateError stands for an error with all that was parsed.
type certificateError struct{}

func (certificateError) Error() string { return "its certificate" }
