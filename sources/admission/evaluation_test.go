package admission_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

var errOutage = errors.New("no route to host")

// TestTwoSteps: the first step grants nothing, every source is asked again in the
// second, and what admits is named.
func TestTwoSteps(t *testing.T) {
	list := sourcetest.NewFake(sourcetest.Lists(named("machine")))
	pcrs := sourcetest.NewFake(sourcetest.NeedsChallenge(sourcetest.Lists(sources.Attributes{})))
	other := sourcetest.NewFake(sourcetest.ListsNot())
	s := newSet(t, policy.Policy{Allow: []policy.Rule{
		{Name: "both", All: []string{"list", "pcrs"}},
		{Name: "others", Any: []string{"other"}},
		{Name: "soon", Any: []string{"list"}, Trial: true},
	}}, admission.Options{}, member("pcrs", pcrs), member("other", other), member("list", list))

	ev := sourcetest.NewEvidence(t)
	d := s.BeforeChallenge(t.Context(), ev)
	if d.Outcome != policy.Challenge || results(d) != "list=listed other=not_listed pcrs=needs_challenge" {
		t.Fatalf("before the challenge: %v: %s", d.Outcome, results(d))
	}
	if d.Rules != nil || d.Listed != nil || d.Attributes != nil {
		t.Errorf("selectors before the challenge: %+v", d)
	}
	for _, a := range d.Answers {
		if !reflect.DeepEqual(a.Verdict.Attributes, sources.Attributes{}) {
			t.Errorf("attributes before the challenge, from %s: %+v", a.Source, a.Verdict.Attributes)
		}
	}
	d = s.AfterChallenge(t.Context(), sourcetest.Proven(ev))
	if d.Outcome != policy.Admitted || results(d) != "list=listed other=not_listed pcrs=listed" {
		t.Fatalf("after the challenge: %v: %s", d.Outcome, results(d))
	}
	wantStrings(t, "rules", d.Rules, "both")
	wantStrings(t, "listed", d.Listed, "list", "pcrs")
	if want := []sources.Attributes{named("machine"), {}}; !reflect.DeepEqual(d.Attributes, want) {
		t.Errorf("attributes %+v", d.Attributes)
	}
	if want := []policy.Trial{{Rule: "soon", Holds: true}}; !reflect.DeepEqual(d.Trials, want) {
		t.Errorf("trials %+v", d.Trials)
	}
	for _, f := range []*sourcetest.Fake{list, other, pcrs} {
		if n, _, _ := f.Calls(); n != 2 {
			t.Errorf("a source was asked %d times, want 2", n)
		}
	}
	if ev.Proof != nil {
		t.Error("the caller's evidence has changed")
	}
	want := "list: listed (a fake lists it); other: not listed; pcrs: listed (a fake lists it)"
	if d.Explain() != want {
		t.Errorf("explained as %q", d.Explain())
	}
}

// TestEveryOutcome pins the outcome of each step, and that a machine is spared a challenge that
// cannot help it.
func TestEveryOutcome(t *testing.T) {
	lists, not := sourcetest.Lists(sources.Attributes{}), sourcetest.ListsNot()
	fails, later := sourcetest.Fails(errOutage), sourcetest.NeedsChallenge
	deny := allowDeny(policy.Rule{Any: []string{"x"}}, policy.Rule{Any: []string{"y"}})
	both := policy.Rule{All: []string{"x", "y"}}
	for _, c := range []struct {
		name   string
		policy policy.Policy
		x, y   sourcetest.Answer
		want   policy.Outcome
		asked  int // how often y is
	}{
		{"listed", allow(both), lists, lists, policy.Admitted, 2},
		{"not listed", allow(both), lists, not, policy.Refused, 1},
		{"an outage beside not listed", allow(both), not, fails, policy.Refused, 1},
		{"an outage that decides", allow(both), lists, fails, policy.Unavailable, 1},
		{"an outage that decides, before the challenge", allow(both), fails, later(lists), policy.Unavailable, 1},
		{"not listed, before the challenge", allow(both), not, later(lists), policy.Refused, 1},
		{"the challenge shows it", allow(both), lists, later(lists), policy.Admitted, 2},
		{"the challenge shows the contrary", allow(both), lists, later(not), policy.Refused, 2},
		{"a source fails after the challenge", allow(both), lists, later(fails), policy.Unavailable, 2},
		{"asks for the challenge again", allow(both), lists, fails2(), policy.Unavailable, 2},
		{"denied", deny, lists, lists, policy.Refused, 1},
		{"not denied", deny, lists, not, policy.Admitted, 2},
		{"perhaps denied", deny, lists, fails, policy.Unavailable, 1},
		{"perhaps denied and not allowed", deny, not, fails, policy.Refused, 1},
		{"the challenge denies", deny, lists, later(lists), policy.Refused, 2},
		{"the challenge clears", deny, lists, later(not), policy.Admitted, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, y := sourcetest.NewFake(c.x), sourcetest.NewFake(c.y)
			s := newSet(t, c.policy, admission.Options{}, member("x", x), member("y", y))
			d := attest(t, s, sourcetest.NewEvidence(t))
			if d.Outcome != c.want {
				t.Errorf("%v, want %v: %s", d.Outcome, c.want, d.Explain())
			}
			if n, _, _ := y.Calls(); n != c.asked {
				t.Errorf("y was asked %d times, want %d", n, c.asked)
			}
			if d.Outcome != policy.Admitted && (d.Rules != nil || d.Attributes != nil) {
				t.Errorf("selectors without an admission: %+v", d)
			}
		})
	}
}

// fails2 needs the challenge, even after it.
func fails2() sourcetest.Answer { return sourcetest.Fails(sources.ErrNeedsChallenge) }

// TestStepsWithoutTheirEvidence: the second step without a proof admits nobody, so that a
// caller's mistake cannot skip the challenge; nor does the first step with one.
func TestStepsWithoutTheirEvidence(t *testing.T) {
	f := sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))
	s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
	ev := sourcetest.NewEvidence(t)
	ctx := t.Context()
	for what, d := range map[string]policy.Decision{
		"no proof after the challenge":    s.AfterChallenge(ctx, ev),
		"no evidence after the challenge": s.AfterChallenge(ctx, nil),
		"proof before the challenge":      s.BeforeChallenge(ctx, sourcetest.Proven(ev)),
		"no evidence":                     s.BeforeChallenge(ctx, nil),
	} {
		if d.Outcome != policy.Refused || d.Rules != nil || d.Listed != nil || d.Answers != nil {
			t.Errorf("%s: %+v", what, d)
		}
	}
	if n, _, _ := f.Calls(); n != 0 {
		t.Errorf("the source was asked %d times", n)
	}
}

// TestRemovedDuringTheChallenge: if a machine delays its answer to the challenge, what counts is
// what sources say when the answer arrives, not what they said before: a machine that was removed
// or denied in the meantime, or about which a source can no longer tell, is not admitted.
func TestRemovedDuringTheChallenge(t *testing.T) {
	lists, not := sourcetest.Lists(sources.Attributes{}), sourcetest.ListsNot()
	fails := sourcetest.Fails(errOutage)
	for _, c := range []struct {
		name         string
		allows, deny sourcetest.Answer // after the challenge
		want         policy.Outcome
	}{
		{"nothing has changed", lists, not, policy.Admitted},
		{"removed", not, not, policy.Refused},
		{"denied", lists, lists, policy.Refused},
		{"an outage", fails, not, policy.Unavailable},
		{"an outage of the denylist", lists, fails, policy.Unavailable},
		{"asks for the challenge again", fails2(), not, policy.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, y := sourcetest.NewFake(lists), sourcetest.NewFake(not)
			s := newSet(t, allowDeny(policy.Rule{Any: []string{"x"}}, policy.Rule{Any: []string{"y"}}),
				admission.Options{}, member("x", x), member("y", y))
			ev := sourcetest.NewEvidence(t)
			wantOutcome(t, s.BeforeChallenge(t.Context(), ev), policy.Challenge)
			x.Set(c.allows)
			y.Set(c.deny)
			wantOutcome(t, s.AfterChallenge(t.Context(), sourcetest.Proven(ev)), c.want)
		})
	}
}

// panicking is an error that cannot even be printed.
type panicking struct{}

func (*panicking) Error() string { panic("no text") }

// incomparable is an error that cannot be compared with another.
type incomparable struct{}

func (incomparable) Error() string { return "no route to host" }
func (incomparable) Is(error) bool { panic("no likeness") }

// TestBrokenAnswers: a source that breaks its contract cannot tell, whatever it does; it admits
// nobody, and the process lives on.
func TestBrokenAnswers(t *testing.T) {
	listed := sources.Verdict{Listed: true, Reason: "r", Attributes: named("n")}
	returns := func(v sources.Verdict, err error) sourcetest.Answer {
		return func(context.Context, *sources.Evidence) (sources.Verdict, error) { return v, err }
	}
	dereferences := func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		return listed, fmt.Errorf("%v", ev.Proof.AK)
	}
	ends := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		runtime.Goexit()
		return listed, nil
	}
	var typedNil *panicking
	for name, c := range map[string]struct {
		answer sourcetest.Answer
		want   string
	}{
		"a verdict beside an error":  {returns(listed, errOutage), "no route to host"},
		"a forged name":              {sourcetest.Lists(named("a\nb")), "control character"},
		"a panic":                    {sourcetest.Panics("a fault"), "panic: a fault"},
		"a panic of nil":             {sourcetest.Panics(nil), "panic"},
		"a panic that has no text":   {sourcetest.Panics(&panicking{}), "panic"},
		"a nil dereference":          {dereferences, "nil pointer"},
		"an end of the goroutine":    {ends, "ended its goroutine"},
		"an error without a text":    {returns(listed, typedNil), "<nil>"},
		"an error with a panic":      {returns(listed, &panicking{}), "PANIC"},
		"an error like no other":     {returns(listed, incomparable{}), "panic"},
		"an end of another question": {returns(listed, context.Canceled), "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			log := newJournal()
			s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)},
				member("x", sourcetest.NewFake(c.answer)))
			d := attest(t, s, sourcetest.NewEvidence(t))
			a := d.Answers[0]
			if d.Outcome != policy.Unavailable || a.Result() != "cannot_tell" ||
				!strings.Contains(a.String(), c.want) {
				t.Errorf("%v: %v, want cannot tell: …%s…", d.Outcome, a, c.want)
			}
			if !reflect.DeepEqual(a.Verdict, sources.Verdict{}) {
				t.Errorf("a verdict beside the error: %+v", a.Verdict)
			}
			lines := strings.Join(log.take(), "\n")
			if !strings.Contains(lines, "source cannot tell source=x kind=fake") {
				t.Errorf("the log does not name the source:\n%s", lines)
			}
			if strings.Contains(name, "panic of") && !strings.Contains(lines, "sourcetest/fake.go") {
				t.Errorf("the log has no stack:\n%s", lines)
			}
		})
	}
}

// TestAnswersAreSettled: attributes of a TPM that is not listed are dropped, and a decision
// shares no memory with the source, which may reuse its own. Of a source without attributes only
// the boot profiles that it has checked are there.
func TestAnswersAreSettled(t *testing.T) {
	mine := sources.Attributes{
		Name: "n", Labels: []string{"l"}, CAs: []string{"c"}, Profiles: []string{"p"},
		Certificate: &sources.EKCertificate{IssuerKeyHash: strings.Repeat("0a", 32), Serial: "1"},
	}
	want := sources.Attributes{
		Name: "n", Labels: []string{"l"}, CAs: []string{"c"}, Profiles: []string{"p"},
		Certificate: &sources.EKCertificate{IssuerKeyHash: strings.Repeat("0a", 32), Serial: "1"},
	}
	other := sources.Attributes{Name: "other", Labels: []string{"prod"}, Profiles: []string{"q"}}
	not := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Reason: strings.Repeat("é", 4000), Attributes: mine}, nil
	}
	s := newSet(t, policy.AnyOf("x", "y", "z"), admission.Options{},
		member("x", sourcetest.NewFake(sourcetest.Lists(mine))),
		member("y", sourcetest.NewFake(not)),
		admission.Member{Name: "z", Source: sourcetest.NewFake(sourcetest.Lists(other)), NoAttributes: true})
	d := attest(t, s, sourcetest.NewEvidence(t))
	mine.Labels[0], mine.CAs[0], mine.Profiles[0], mine.Certificate.Serial = "forged", "forged", "forged", "f"
	wantStrings(t, "listed", d.Listed, "x", "z")
	if !reflect.DeepEqual(d.Attributes, []sources.Attributes{want, {Profiles: []string{"q"}}}) {
		t.Errorf("attributes %+v", d.Attributes)
	}
	if v := d.Answers[1].Verdict; !reflect.DeepEqual(v.Attributes, sources.Attributes{}) || len(v.Reason) > 1024 {
		t.Errorf("not listed, with %+v and a reason of %d bytes", v.Attributes, len(v.Reason))
	}
}

// TestUnsure: a decision names the sources of its rule that could not tell, since what they
// know is missing; nothing is missing of sources without attributes.
func TestUnsure(t *testing.T) {
	s := newSet(t, policy.AnyOf("up", "down", "plain"), admission.Options{},
		member("up", sourcetest.NewFake(sourcetest.Lists(named("n")))),
		member("down", sourcetest.NewFake(sourcetest.Fails(errOutage))),
		admission.Member{Name: "plain", Source: sourcetest.NewFake(sourcetest.Fails(errOutage)), NoAttributes: true})
	d := attest(t, s, sourcetest.NewEvidence(t))
	if d.Outcome != policy.Admitted {
		t.Fatalf("%v: %s", d.Outcome, d.Explain())
	}
	wantStrings(t, "listed", d.Listed, "up")
	wantStrings(t, "unsure", d.Unsure, "down")
}

// TestStuckSourceCostsItsDeadline: a mount whose server has gone costs an attestation its
// deadline and no more, other sources answer meanwhile, and the call is counted and logged
// until it returns.
func TestStuckSourceCostsItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		stuck := sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.Lists(named("late"))))
		s := newSet(t, policy.AnyOf("stuck", "up"), admission.Options{Log: slogOf(log)},
			member("stuck", stuck), member("up", sourcetest.NewFake(sourcetest.Lists(named("up")))))
		begun := time.Now()
		d := attest(t, s, sourcetest.NewEvidence(t))
		// The first step does not wait for the stuck source, since "up" lists the
		// machine.
		if took := time.Since(begun); d.Outcome != policy.Admitted || took != 5*time.Second+admission.Slow {
			t.Errorf("%v after %v: %s", d.Outcome, took, d.Explain())
		}
		wantStrings(t, "listed", d.Listed, "up")
		wantStrings(t, "unsure", d.Unsure, "stuck")
		if st := s.Status(); st[0].Stuck != 1 || st[1].Stuck != 0 {
			t.Errorf("status %+v", st)
		}
		log.wantLines(t, "WARN a check of the source is stuck",
			"source cannot tell source=stuck kind=fake error=no answer within 5s")

		close(release)
		synctest.Wait()
		if st := s.Status(); st[0].Stuck != 0 {
			t.Errorf("status %+v", st)
		}
		d = attest(t, s, sourcetest.NewEvidence(t))
		wantStrings(t, "listed", d.Listed, "stuck", "up")
		log.wantLines(t, "INFO no check of the source is stuck any longer", "INFO source can tell again")
	})
}

// TestThousandAttestationsOnAStuckSource: all are answered by the deadline, while no more
// checks than there are slots ever enter the source, however often they come; and another
// source is asked as always.
func TestThousandAttestationsOnAStuckSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		stuck := sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.Lists(sources.Attributes{})))
		up := sourcetest.NewFake(sourcetest.ListsNot())
		s := newSet(t, policy.AnyOf("stuck", "up"), admission.Options{Slots: 8},
			member("stuck", stuck), member("up", up))
		ev := sourcetest.NewEvidence(t)
		goroutines := runtime.NumGoroutine()
		for wave := range 3 {
			begun := time.Now()
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					d := s.BeforeChallenge(t.Context(), ev)
					if took := time.Since(begun); d.Outcome != policy.Unavailable || took > 5*time.Second {
						t.Errorf("%v after %v: %s", d.Outcome, took, d.Explain())
					}
				})
			}
			all.Wait()
			synctest.Wait()
			if _, busy, most := stuck.Calls(); busy != 8 || most != 8 {
				t.Errorf("wave %d: %d checks are in the source, %d were", wave, busy, most)
			}
			if n := runtime.NumGoroutine() - goroutines; n > 50 { // those of the runtime come and go
				t.Errorf("wave %d left %d goroutines", wave, n)
			}
		}
		if n, _, _ := up.Calls(); n != 3000 {
			t.Errorf("the other source was asked %d times", n)
		}
		if st := s.Status(); st[0].Stuck != 8 {
			t.Errorf("status %+v", st)
		}
		close(release)
		synctest.Wait()
		if d := attest(t, s, ev); d.Outcome != policy.Admitted {
			t.Errorf("after it has come back: %v: %s", d.Outcome, d.Explain())
		}
	})
}

// TestSlotsServeInTurn: more checks than slots wait and are then served.
func TestSlotsServeInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			time.Sleep(time.Second)
			return sources.Verdict{Listed: true}, nil
		}
		f := sourcetest.NewFake(slow)
		s := newSet(t, policy.AnyOf("x"), admission.Options{Slots: 2}, member("x", f))
		ev := sourcetest.NewEvidence(t)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if d := attest(t, s, ev); d.Outcome != policy.Admitted {
					t.Errorf("%v: %s", d.Outcome, d.Explain())
				}
			})
		}
		all.Wait()
		if n, _, most := f.Calls(); n != 16 || most != 2 {
			t.Errorf("%d checks, %d at once", n, most)
		}
	})
}

// TestObedientSourceSaysWhy: a source that obeys its deadline is not stuck, and
// its own error is the answer.
func TestObedientSourceSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(t, policy.AnyOf("x"), admission.Options{CheckTimeout: time.Second},
			member("x", sourcetest.NewFake(sourcetest.Waits())))
		begun := time.Now()
		d := attest(t, s, sourcetest.NewEvidence(t))
		if d.Outcome != policy.Unavailable || !errors.Is(d.Answers[0].Err, context.DeadlineExceeded) {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		if took := time.Since(begun); took >= time.Second || s.Status()[0].Stuck != 0 {
			t.Errorf("after %v: %+v", took, s.Status())
		}
	})
}

// TestCallerLeaves: an agent that leaves ends its evaluation, and the log does not show that as
// an outage of the source.
func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		f := sourcetest.NewFake(sourcetest.Waits())
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", f))
		ctx, leave := context.WithCancel(t.Context())
		var d policy.Decision
		done := make(chan struct{})
		go func() {
			defer close(done)
			d = s.BeforeChallenge(ctx, sourcetest.NewEvidence(t))
		}()
		synctest.Wait()
		leave()
		<-done
		if d.Outcome != policy.Unavailable || results(d) != "x=cannot_tell" {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
		if d := s.BeforeChallenge(ctx, sourcetest.NewEvidence(t)); d.Outcome != policy.Unavailable {
			t.Errorf("begun after leaving: %v: %s", d.Outcome, d.Explain())
		}
		if n, _, _ := f.Calls(); n != 1 {
			t.Errorf("the source was asked %d times", n)
		}
		log.wantLines(t)
	})
}

// TestStringsForPeople pins what the log and the metrics show.
func TestStringsForPeople(t *testing.T) {
	for o, want := range map[policy.Outcome]string{
		policy.Refused: "refused", policy.Unavailable: "unavailable",
		policy.Challenge: "challenge", policy.Admitted: "admitted", 9: "Outcome(9)",
	} {
		if o.String() != want {
			t.Errorf("outcome %q, want %q", o, want)
		}
	}
	d := policy.Decision{Answers: []policy.Answer{
		{Source: "a", Err: errOutage},
		{Source: "b", Err: sources.ErrNeedsChallenge},
		{Source: "c", Verdict: sources.Verdict{Listed: true, Reason: "serial 42"}},
		{Source: "d"},
	}}
	want := "a: cannot tell: no route to host; b: needs the challenge; c: listed (serial 42); d: not listed"
	if d.Explain() != want {
		t.Errorf("%q, want %q", d.Explain(), want)
	}
	if got := results(d); got != "a=cannot_tell b=needs_challenge c=listed d=not_listed" {
		t.Error(got)
	}
}
