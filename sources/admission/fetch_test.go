package admission_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
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

// fetches returns how often the network was asked.
func fetches(f *sourcetest.FetchingFake) int {
	n, _, _ := f.Network.Calls()
	return n
}

// TestFetchedLast: nothing is fetched before the machine has answered its challenge, so that a
// stranger who knows only a certificate causes no request. Then Fetch is called once, with the
// proof, after Check.
func TestFetchedLast(t *testing.T) {
	var asked []*sources.Evidence
	x := sourcetest.NewFetchingFake(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		asked = append(asked, ev)
		return sources.Verdict{Listed: true, Attributes: named("fetched")}, nil
	})
	s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", x))
	ev := sourcetest.NewEvidence(t)
	d := s.BeforeChallenge(t.Context(), ev)
	if d.Outcome != policy.Challenge || results(d) != "x=needs_network" || fetches(x) != 0 {
		t.Fatalf("before the challenge: %v: %s, %d fetches", d.Outcome, d.Explain(), fetches(x))
	}
	proven := sourcetest.Proven(ev)
	d = s.AfterChallenge(t.Context(), proven)
	if d.Outcome != policy.Admitted || results(d) != "x=listed" {
		t.Fatalf("after the challenge: %v: %s", d.Outcome, d.Explain())
	}
	wantStrings(t, "rules", d.Rules, policy.DefaultRule)
	if !reflect.DeepEqual(d.Attributes, []sources.Attributes{named("fetched")}) {
		t.Errorf("attributes %+v", d.Attributes)
	}
	if len(asked) != 1 || asked[0].Proof != proven.Proof || asked[0].EKHash != ev.EKHash || ev.Proof != nil {
		t.Errorf("asked %d times", len(asked))
	}
	if n, _, _ := x.Calls(); n != 2 {
		t.Errorf("Check was asked %d times", n)
	}
	if s.AfterChallenge(t.Context(), ev); fetches(x) != 1 {
		t.Error("fetched without proof")
	}
}

// TestFetchedOnlyWhereItMatters: the network is asked if it can change the decision or what it
// grants, and never for a machine that is refused anyway, for a rule on trial, or for a rule
// that cannot hold.
func TestFetchedOnlyWhereItMatters(t *testing.T) {
	x := policy.Rule{Name: "x", Any: []string{"x"}}
	other := policy.Rule{Name: "o", Any: []string{"other"}}
	either := policy.Rule{Name: "e", Any: []string{"x", "other"}}
	both := policy.Rule{Name: "b", All: []string{"x", "other"}}
	trial := x
	trial.Trial = true
	allow := func(rules ...policy.Rule) policy.Policy { return policy.Policy{Allow: rules} }
	deny := func(a, d policy.Rule) policy.Policy {
		return policy.Policy{Allow: []policy.Rule{a}, Deny: []policy.Rule{d}}
	}
	lists, not := sourcetest.Lists(named("n")), sourcetest.ListsNot()
	fails, later := sourcetest.Fails(errOutage), sourcetest.NeedsChallenge
	for _, c := range []struct {
		name    string
		policy  policy.Policy
		other   sourcetest.Answer
		network sourcetest.Answer
		fetches int
		want    policy.Outcome
		listed  string
	}{
		{"both", allow(both), lists, lists, 1, policy.Admitted, "other x"},
		{"both, not listed", allow(both), lists, not, 1, policy.Refused, ""},
		{"both, the network is down", allow(both), lists, fails, 1, policy.Unavailable, ""},
		{"both, the other does not list", allow(both), not, lists, 0, policy.Refused, ""},
		{"both, the challenge shows that it does not", allow(both), later(not), lists, 0, policy.Refused, ""},
		{"both, the challenge shows that it does", allow(both), later(lists), lists, 1, policy.Admitted, "other x"},
		{"both, an outage before the challenge", allow(both), fails, lists, 0, policy.Unavailable, ""},
		{"both, an outage after it", allow(both), later(fails), not, 1, policy.Refused, ""},
		{"either, for the selectors", allow(either), lists, lists, 1, policy.Admitted, "other x"},
		{"either, and it fails", allow(either), lists, fails, 1, policy.Admitted, "other"},
		{"either, the other does not list", allow(either), not, lists, 1, policy.Admitted, "x"},
		{"a rule of its own beside one that holds", allow(x, other), lists, lists, 1, policy.Admitted, "other x"},
		{"a rule that cannot hold beside one that does", allow(both, either), not, lists, 1, policy.Admitted, "x"},
		{"on trial", allow(trial, other), lists, lists, 0, policy.Admitted, "other"},
		{"on trial, refused", allow(trial, other), not, lists, 0, policy.Refused, ""},
		{"denies", deny(other, x), lists, lists, 1, policy.Refused, ""},
		{"clears", deny(other, x), lists, not, 1, policy.Admitted, "other"},
		{"cannot clear", deny(other, x), lists, fails, 1, policy.Unavailable, ""},
		{"denies one who is not allowed", deny(other, x), not, lists, 0, policy.Refused, ""},
		{"allowed and denied", deny(x, other), lists, lists, 0, policy.Refused, ""},
		{"denied by the challenge", deny(x, other), later(lists), lists, 0, policy.Refused, ""},
		{"a deny rule that does not hold", deny(other, policy.Rule{Name: "d", All: []string{"x", "third"}}), lists, lists, 0, policy.Admitted, "other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fetcher := sourcetest.NewFetchingFake(c.network)
			s := newSet(t, c.policy, admission.Options{}, members(c.policy, map[string]sources.Source{
				"x": fetcher, "other": sourcetest.NewFake(c.other), "third": sourcetest.NewFake(not),
			})...)
			d := attest(t, s, sourcetest.NewEvidence(t))
			if d.Outcome != c.want || strings.Join(d.Listed, " ") != c.listed {
				t.Errorf("%v, listed by %q: %s", d.Outcome, d.Listed, d.Explain())
			}
			if fetches(fetcher) != c.fetches {
				t.Errorf("%d fetches, want %d: %s", fetches(fetcher), c.fetches, d.Explain())
			}
		})
	}
}

// TestKnownBeforeTheChallenge: Known decides who may hold a place while the server waits for an
// answer. What a rule on trial, a deny rule or a rule that cannot hold says makes no stranger
// known, and neither does an answer that is still open.
func TestKnownBeforeTheChallenge(t *testing.T) {
	rule := func(name string, all ...string) policy.Rule { return policy.Rule{Name: name, All: all} }
	trial := rule("t", "list")
	trial.Trial = true
	for _, c := range []struct {
		name   string
		policy policy.Policy
		list   bool
		known  bool
	}{
		{"listed", policy.AnyOf("list", "net"), true, true},
		{"not listed", policy.AnyOf("list", "net"), false, false},
		{"listed, and the network decides", policy.Policy{Allow: []policy.Rule{rule("a", "list", "net")}}, true, true},
		{"only on trial", policy.Policy{Allow: []policy.Rule{rule("a", "net"), trial}}, true, false},
		{"only by a deny rule", policy.Policy{
			Allow: []policy.Rule{rule("a", "net")}, Deny: []policy.Rule{rule("d", "list", "not")},
		}, true, false},
		{"by a rule that cannot hold", policy.Policy{Allow: []policy.Rule{rule("a", "net"), rule("b", "list", "not")}}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := sourcetest.NewFake(sourcetest.ListsNot())
			if c.list {
				list = sourcetest.NewFake(sourcetest.Lists(named("n")))
			}
			s := newSet(t, c.policy, admission.Options{}, members(c.policy, map[string]sources.Source{
				"list": list, "not": sourcetest.NewFake(sourcetest.ListsNot()),
				"net": sourcetest.NewFetchingFake(sourcetest.ListsNot()),
			})...)
			d := s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t))
			if d.Outcome != policy.Challenge || d.Known != c.known {
				t.Errorf("%v, known: %v: %s", d.Outcome, d.Known, d.Explain())
			}
		})
	}
}

// members are the sources that the policy names.
func members(p policy.Policy, all map[string]sources.Source) []admission.Member {
	var names []string
	for _, r := range slices.Concat(p.Allow, p.Deny) {
		names = append(names, slices.Concat(r.All, r.Any)...)
	}
	slices.Sort(names)
	var ms []admission.Member
	for _, name := range slices.Compact(names) {
		ms = append(ms, member(name, all[name]))
	}
	return ms
}

// TestNotAskedIsNoFailure: an answer that was not asked for admits nobody, says why it is
// missing, and nowhere looks like an outage: not in the outcome, the deny rules, the log, the
// status or the verdict that metrics count.
func TestNotAskedIsNoFailure(t *testing.T) {
	log := newJournal()
	x := sourcetest.NewFetchingFake(sourcetest.Lists(sources.Attributes{}))
	s := newSet(t, policy.Policy{
		Allow: []policy.Rule{{Name: "a", Any: []string{"list"}}},
		Deny:  []policy.Rule{{Name: "d", Any: []string{"x"}}},
	}, admission.Options{Log: slogOf(log)}, member("x", x),
		member("list", sourcetest.NewFake(sourcetest.NeedsChallenge(sourcetest.ListsNot()))))
	d := attest(t, s, sourcetest.NewEvidence(t))
	if d.Outcome != policy.Refused || results(d) != "list=not_listed x=needs_network" {
		t.Errorf("%v: %s", d.Outcome, results(d))
	}
	const why = "x: needs the network, which was not asked: no answer would have changed the decision"
	if !strings.Contains(d.Explain(), why) || !errors.Is(d.Answers[1].Err, sources.ErrNeedsNetwork) {
		t.Errorf("explained as %q", d.Explain())
	}
	if d.Denied != nil || d.MaybeDenied != nil || fetches(x) != 0 {
		t.Errorf("%d fetches, %+v", fetches(x), d)
	}
	if st := s.Status()[1]; !st.Up() {
		t.Errorf("status %+v", st)
	}
	log.wantLines(t)
}

// TestFetchesAtOnce: several sources fetch at the same time, within one time for all, and the
// answer of one does not depend on another.
func TestFetchesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		met := make(chan struct{})
		meets := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			select {
			case met <- struct{}{}:
			case <-met:
			}
			return sources.Verdict{Listed: true}, nil
		}
		s := newSet(t, policy.AnyOf("x", "y", "z"), admission.Options{},
			member("x", sourcetest.NewFetchingFake(meets)), member("y", sourcetest.NewFetchingFake(meets)),
			member("z", sourcetest.NewFetchingFake(sourcetest.Waits())))
		begun := time.Now()
		d := attest(t, s, sourcetest.NewEvidence(t))
		if took := time.Since(begun); d.Outcome != policy.Admitted || took > 20*time.Second {
			t.Errorf("%v after %v: %s", d.Outcome, took, d.Explain())
		}
		wantStrings(t, "listed", d.Listed, "x", "y")
		wantStrings(t, "unsure", d.Unsure, "z")
	})
}

// TestFetchNeedsTheChallengeFirst: a source may learn only from the proof that it has to ask
// the network; it is asked in the same step, and has all of its time, however long the first
// question took.
func TestFetchNeedsTheChallengeFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := sourcetest.NewFetchingFake(func(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
			deadline, _ := ctx.Deadline()
			if left := time.Until(deadline); left < 19*time.Second || left > 20*time.Second {
				t.Errorf("%v are left", left)
			}
			return sources.Verdict{Listed: true}, nil
		})
		x.Set(sourcetest.NeedsChallenge(func(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
			time.Sleep(4 * time.Second)
			return sources.Verdict{}, fmt.Errorf("the issuer: %w", sources.ErrNeedsNetwork)
		}))
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", x))
		d := attest(t, s, sourcetest.NewEvidence(t))
		if n, _, _ := x.Calls(); d.Outcome != policy.Admitted || n != 2 || fetches(x) != 1 {
			t.Errorf("%v, asked %d times, fetched %d times", d.Outcome, n, fetches(x))
		}
	})
}

// TestFetchThatBreaksTheContract: a source whose Fetch breaks its contract cannot tell,
// whatever it does; it admits nobody, and the process lives on.
func TestFetchThatBreaksTheContract(t *testing.T) {
	ends := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		runtime.Goexit()
		return sources.Verdict{Listed: true}, nil
	}
	both := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Listed: true, Attributes: named("n")}, errOutage
	}
	for name, c := range map[string]struct {
		answer sourcetest.Answer
		want   string
	}{
		"fails":                      {sourcetest.Fails(errOutage), "no route to host"},
		"a verdict beside an error":  {both, "no route to host"},
		"needs the network for ever": {sourcetest.Fails(fmt.Errorf("the issuer %w", sources.ErrNeedsNetwork)), "the issuer needs the network"},
		"needs the challenge after":  {fails2(), "after the challenge"},
		"a panic":                    {sourcetest.Panics("a fault"), "panic: a fault"},
		"an end of the goroutine":    {ends, "ended its goroutine"},
		"a forged name":              {sourcetest.Lists(named("a\nb")), "control character"},
		"an error with a panic":      {sourcetest.Fails(&panicking{}), "PANIC"},
		"an error like no other":     {sourcetest.Fails(incomparable{}), "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			log := newJournal()
			s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)},
				member("x", sourcetest.NewFetchingFake(c.answer)))
			d := attest(t, s, sourcetest.NewEvidence(t))
			a := d.Answers[0]
			if d.Outcome != policy.Unavailable || a.Result() != "cannot_tell" || !strings.Contains(a.String(), c.want) {
				t.Errorf("%v: %v, want cannot tell: …%s…", d.Outcome, a, c.want)
			}
			if !reflect.DeepEqual(a.Verdict, sources.Verdict{}) || s.Status()[0].FetchesFailed != 1 {
				t.Errorf("a verdict beside the error: %+v, status %+v", a.Verdict, s.Status()[0])
			}
			const line = "source could not fetch what a machine's evidence needs source=x kind=fake"
			if lines := strings.Join(log.take(), "\n"); !strings.Contains(lines, line) {
				t.Errorf("the log does not name the source:\n%s", lines)
			}
		})
	}
}

// TestNeedsNetworkFromOneThatCannotFetch: a source that needs the network but is not a Fetcher
// cannot tell, even in the first step: nobody waits for an answer that will never come.
func TestNeedsNetworkFromOneThatCannotFetch(t *testing.T) {
	for _, x := range []sources.Source{
		sourcetest.NewFake(sourcetest.Fails(sources.ErrNeedsNetwork)),
		sourcetest.NewFake(sourcetest.Fails(fmt.Errorf("the issuer %w", sources.ErrNeedsNetwork))),
	} {
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", x))
		d := s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t))
		if d.Outcome != policy.Unavailable || results(d) != "x=cannot_tell" || s.Status()[0].Up() {
			t.Errorf("%v: %s", d.Outcome, d.Explain())
		}
	}
}

// TestThousandAttestationsAtANetworkThatHangs: all are answered by their deadline; no more
// fetches than there are slots enter the source, however often they come; no other goroutine
// outlives its attestation; and machines that the source knows from memory are admitted as
// always.
func TestThousandAttestationsAtANetworkThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, release := newJournal(), make(chan struct{})
		honest := sourcetest.NewEvidence(t)
		x := sourcetest.NewFetchingFake(sourcetest.Hangs(release, sourcetest.Lists(named("late"))))
		x.Set(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ev.EKHash == honest.EKHash {
				return sources.Verdict{Listed: true}, nil
			}
			return sources.Verdict{}, sources.ErrNeedsNetwork
		})
		s := newSet(t, policy.AnyOf("x"), admission.Options{Slots: 8, Log: slogOf(log)}, member("x", x))
		hostile := sourcetest.NewEvidence(t)
		goroutines := runtime.NumGoroutine()
		for wave := range 3 {
			begun := time.Now()
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					d := attest(t, s, hostile)
					if took := time.Since(begun); d.Outcome != policy.Unavailable || took != 20*time.Second && took != 19900*time.Millisecond {
						t.Errorf("%v after %v: %s", d.Outcome, took, d.Explain())
					}
				})
			}
			synctest.Wait()
			if n := runtime.NumGoroutine() - goroutines; n > 2100 {
				t.Errorf("wave %d: %d goroutines for 1000 attestations", wave, n)
			}
			for range 100 {
				before := time.Now()
				if d := attest(t, s, honest); d.Outcome != policy.Admitted || time.Since(before) != 0 {
					t.Fatalf("beside the storm: %v after %v: %s", d.Outcome, time.Since(before), d.Explain())
				}
			}
			all.Wait()
			synctest.Wait()
			if _, busy, most := x.Network.Calls(); busy != 8 || most != 8 {
				t.Errorf("wave %d: %d fetches are in the source, %d were", wave, busy, most)
			}
			if n := runtime.NumGoroutine() - goroutines; n > 50 { // others' come and go
				t.Errorf("wave %d left %d goroutines", wave, n)
			}
		}
		if st := s.Status()[0]; st.Stuck != 8 {
			t.Errorf("status %+v", st)
		}
		if lines := strings.Join(log.take(), "\n"); strings.Count(lines, "is stuck: it has not returned") != 1 ||
			!strings.Contains(lines, "network=true") {
			t.Errorf("the log:\n%s", lines)
		}
		close(release)
		synctest.Wait()
		if d := attest(t, s, hostile); d.Outcome != policy.Admitted || s.Status()[0].Stuck != 0 {
			t.Errorf("after it has come back: %v: %s", d.Outcome, d.Explain())
		}
	})
}

// TestFetchesServeInTurn: more fetches than slots wait and are then served, within
// their own time, while a stuck Check takes none of their slots.
func TestFetchesServeInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		stuck := sourcetest.NewEvidence(t)
		x := sourcetest.NewFetchingFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			time.Sleep(3 * time.Second)
			return sources.Verdict{Listed: true}, nil
		})
		x.Set(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ev.EKHash == stuck.EKHash {
				<-release
			}
			return sources.Verdict{}, sources.ErrNeedsNetwork
		})
		s := newSet(t, policy.AnyOf("x"), admission.Options{Slots: 2}, member("x", x))
		wantOutcome(t, attest(t, s, stuck), policy.Unavailable)
		var all sync.WaitGroup
		for range 8 {
			ev := sourcetest.NewEvidence(t)
			all.Go(func() { wantOutcome(t, attest(t, s, ev), policy.Admitted) })
		}
		all.Wait()
		if n, _, most := x.Network.Calls(); n != 8 || most != 2 {
			t.Errorf("%d fetches, %d at once", n, most)
		}
		close(release)
	})
}

// TestFetchTimeout: a source that obeys its deadline says why it cannot tell, and a source that
// does not costs an attestation this time and no more.
func TestFetchTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		for _, c := range []struct {
			network sourcetest.Answer
			took    time.Duration
			stuck   int
			want    error
		}{
			{sourcetest.Waits(), 900 * time.Millisecond, 0, context.DeadlineExceeded},
			{sourcetest.Hangs(release, sourcetest.Lists(named("late"))), time.Second, 1, nil},
		} {
			s := newSet(t, policy.AnyOf("x"), admission.Options{FetchTimeout: time.Second},
				member("x", sourcetest.NewFetchingFake(c.network)))
			begun := time.Now()
			d := attest(t, s, sourcetest.NewEvidence(t))
			if took := time.Since(begun); d.Outcome != policy.Unavailable || took != c.took {
				t.Errorf("%v after %v: %s", d.Outcome, took, d.Explain())
			}
			if c.want != nil && !errors.Is(d.Answers[0].Err, c.want) || s.Status()[0].Stuck != c.stuck {
				t.Errorf("%s, status %+v", d.Explain(), s.Status()[0])
			}
		}
		close(release)
	})
}

// TestCallerLeavesWhileItIsFetched: an agent that leaves ends its evaluation and its fetch, and
// the log does not show that as an outage of the source; an agent that has left causes no
// request.
func TestCallerLeavesWhileItIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := newJournal()
		x := sourcetest.NewFetchingFake(sourcetest.Waits())
		s := newSet(t, policy.AnyOf("x"), admission.Options{Log: slogOf(log)}, member("x", x))
		ctx, leave := context.WithCancel(t.Context())
		ev := sourcetest.NewEvidence(t)
		s.BeforeChallenge(ctx, ev)
		var all sync.WaitGroup
		all.Go(func() { wantOutcome(t, s.AfterChallenge(ctx, sourcetest.Proven(ev)), policy.Unavailable) })
		synctest.Wait()
		begun := time.Now()
		leave()
		all.Wait()
		wantOutcome(t, s.AfterChallenge(ctx, sourcetest.Proven(ev)), policy.Unavailable)
		if _, busy, _ := x.Network.Calls(); fetches(x) != 1 || busy != 0 || time.Since(begun) != 0 {
			t.Errorf("%d fetches, %d under way after %v", fetches(x), busy, time.Since(begun))
		}
		log.wantLines(t)
		if st := s.Status()[0]; st.Fetched != 0 || st.FetchesFailed != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

// TestHealthOfAFetcher: what one machine's evidence names says nothing about the source. A
// stranger whose certificate names a server that does not exist does not take the source down,
// and machines that are answered from memory do not hide a vendor whose server is down.
// Failures are counted, and logged now and then, however many machines come in turn.
func TestHealthOfAFetcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, changes := newJournal(), 0
		x := sourcetest.NewFetchingFake(sourcetest.Fails(errOutage))
		o := admission.Options{Log: slogOf(log), Changed: func() { changes++ }}
		s := newSet(t, policy.AnyOf("x"), o, member("x", x))
		inTurn := func(n int, want policy.Outcome) {
			for range n {
				x.Set(sourcetest.Lists(named("kept")))
				wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), policy.Admitted)
				x.Set(sourcetest.Fails(errors.New("an earlier attempt failed")))
				wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), policy.Unavailable)
				x.Set(sourcetest.Fails(sources.ErrNeedsNetwork))
				wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), want)
				if st := s.Status()[0]; st.Failing || !st.Up() || changes != 0 {
					t.Fatalf("status %+v, %d changes", st, changes)
				}
			}
		}
		inTurn(10, policy.Unavailable)
		log.wantLines(t, "WARN source could not fetch what a machine's evidence needs "+
			"source=x kind=fake error=no route to host failed=1 succeeded=0")
		time.Sleep(10 * time.Minute)
		inTurn(3, policy.Unavailable)
		log.wantLines(t, "failed=11 succeeded=0")
		x.Network.Set(sourcetest.ListsNot())
		inTurn(5, policy.Refused)
		log.wantLines(t)
		if st := s.Status()[0]; !st.Fetches || st.Fetched != 5 || st.FetchesFailed != 13 {
			t.Errorf("status %+v", st)
		}
	})
}

// pollingFetcher is a Fetcher that is polled as well.
type pollingFetcher struct {
	*sourcetest.LoadingFake
	network sourcetest.Answer
}

func (p pollingFetcher) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	return p.network(ctx, ev)
}

// TestPolledBeforeTheChallengeFetchedAfter: a list that lacks a machine is polled if the
// decision depends on it, and if the new list leaves the machine to the network, that is asked
// after the challenge.
func TestPolledBeforeTheChallengeFetchedAfter(t *testing.T) {
	o := &origin{}
	var fetched atomic.Int64
	x := pollingFetcher{o.poller(), func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		fetched.Add(1)
		return sources.Verdict{Listed: true}, nil
	}}
	x.Set(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		if !o.served.Load() {
			return sources.Verdict{}, nil
		}
		return sources.Verdict{}, sources.ErrNeedsNetwork
	})
	s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", x))
	s.Start(t.Context(), nil)
	o.lists.Store(true)
	d := before(t, s)
	if d.Outcome != policy.Challenge || results(d) != "x=needs_network" || fetched.Load() != 0 {
		t.Errorf("%v: %s, %d fetches", d.Outcome, d.Explain(), fetched.Load())
	}
	o.want(t, 2)
	wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), policy.Admitted)
	o.want(t, 2)
}

// TestTakenOverWhileItIsFetched: a reconfiguration keeps the source at work, and
// the fetches of the old Set end with its attestations.
func TestTakenOverWhileItIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := sourcetest.NewFetchingFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			time.Sleep(time.Second)
			return sources.Verdict{Listed: true}, nil
		})
		one := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", x))
		one.Start(t.Context(), nil)
		var all sync.WaitGroup
		all.Go(func() { wantOutcome(t, attest(t, one, sourcetest.NewEvidence(t)), policy.Admitted) })
		synctest.Wait()
		two := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", sourcetest.NewFetchingFake(sourcetest.ListsNot())))
		two.Start(t.Context(), one)
		one.Close()
		all.Wait()
		wantOutcome(t, attest(t, two, sourcetest.NewEvidence(t)), policy.Admitted)
		if fetches(x) != 2 {
			t.Errorf("%d fetches", fetches(x))
		}
	})
}

// TestRemovedWhileItIsFetched: a machine that is removed from a list, or denied, while its
// certificate is being fetched must not be admitted up to 20 seconds later, after the eviction. Nor
// is it admitted if a source can no longer tell.
func TestRemovedWhileItIsFetched(t *testing.T) {
	for name, c := range map[string]struct {
		list, denied sourcetest.Answer // when the network has answered
		want         policy.Outcome
	}{
		"nothing":          {sourcetest.Lists(named("n")), sourcetest.ListsNot(), policy.Admitted},
		"removed":          {sourcetest.ListsNot(), sourcetest.ListsNot(), policy.Refused},
		"denied":           {sourcetest.Lists(named("n")), sourcetest.Lists(named("")), policy.Refused},
		"the list is down": {sourcetest.Panics("gone"), sourcetest.ListsNot(), policy.Unavailable},
		"denied, perhaps":  {sourcetest.Lists(named("n")), sourcetest.Panics("gone"), policy.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			list, denied := sourcetest.NewFake(sourcetest.Lists(named("n"))), new(sourcetest.Fake)
			vendors := sourcetest.NewFetchingFake(nil)
			vendors.Network.Set(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
				list.Set(c.list)
				denied.Set(c.denied)
				return sources.Verdict{Listed: true}, nil
			})
			s := newSet(t, allowDeny(policy.Rule{All: []string{"list", "vendors"}}, policy.Rule{Any: []string{"denied"}}),
				admission.Options{}, member("list", list), member("vendors", vendors), member("denied", denied))
			if d := attest(t, s, sourcetest.NewEvidence(t)); d.Outcome != c.want || fetches(vendors) != 1 {
				t.Errorf("%v after %d fetches, want %v: %s", d.Outcome, fetches(vendors), c.want, d.Explain())
			}
		})
	}
}
