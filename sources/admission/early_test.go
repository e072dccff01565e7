package admission_test

import (
	"context"
	"errors"
	"slices"
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

// An origin is where a polled list comes from.
type origin struct {
	lists, served atomic.Bool // the TPM: at the origin, and in the list as it was polled
	polls         atomic.Int64
	takes         time.Duration // to poll
	fail          error
}

// poller returns a source that follows the origin, once an hour by itself.
func (o *origin) poller() *sourcetest.LoadingFake {
	f := &sourcetest.LoadingFake{When: sources.Schedule{Every: time.Hour, Early: true}}
	f.OnLoad = func(ctx context.Context) error {
		lists := o.lists.Load()
		select {
		case <-time.After(o.takes):
		case <-ctx.Done():
			return ctx.Err()
		}
		if n := o.polls.Add(1); n > 1 && o.fail != nil {
			return o.fail
		}
		o.served.Store(lists)
		return nil
	}
	f.Set(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Listed: o.served.Load()}, nil
	})
	return f
}

func (o *origin) want(t *testing.T, polls int64) {
	t.Helper()
	if p := o.polls.Load(); p != polls {
		t.Errorf("%d polls, want %d", p, polls)
	}
}

// before returns the decision of the first step.
func before(t *testing.T, s *admission.Set) policy.Decision {
	t.Helper()
	return s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t))
}

func wantOutcome(t *testing.T, d policy.Decision, want policy.Outcome) {
	t.Helper()
	if d.Outcome != want {
		t.Errorf("%v, want %v: %s", d.Outcome, want, d.Explain())
	}
}

// TestListedAMomentAgo: a machine that an operator has just listed is not turned away until the
// next poll, and for a machine that is still not listed polls are made only as often as the
// limit permits.
func TestListedAMomentAgo(t *testing.T) {
	o := &origin{}
	s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", o.poller()))
	s.Start(t.Context(), nil)
	o.lists.Store(true)
	wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), policy.Admitted)
	o.want(t, 2)
	wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), policy.Admitted)
	o.want(t, 2) // no miss

	o.lists.Store(false)
	o.served.Store(false)
	for range 100 {
		wantOutcome(t, before(t, s), policy.Refused)
	}
	if o.polls.Load() != 4 { // one by itself, and three ahead of time
		t.Errorf("a stranger caused %d polls", o.polls.Load()-2)
	}
}

// TestPolledOnlyWhereItHelps: no poll is made for a machine that is admitted or refused
// whatever the poll would show, for a rule on trial, or for a deny rule, by which strangers
// could cause polls at will.
func TestPolledOnlyWhereItHelps(t *testing.T) {
	x := policy.Rule{Name: "x", Any: []string{"x"}}
	other := policy.Rule{Name: "o", Any: []string{"other"}}
	both := policy.Rule{Name: "b", All: []string{"x", "other"}}
	trial := x
	trial.Trial = true
	lists, not := sourcetest.Lists(sources.Attributes{}), sourcetest.ListsNot()
	fails := sourcetest.Fails(errOutage)
	for _, c := range []struct {
		name   string
		policy policy.Policy
		other  sourcetest.Answer
		polls  int64 // but the first
		want   policy.Outcome
	}{
		{"one of two", policy.Policy{Allow: []policy.Rule{x, other}}, not, 1, policy.Challenge},
		{"one of two, the other lists", policy.Policy{Allow: []policy.Rule{x, other}}, lists, 0, policy.Challenge},
		{"one of two, an outage", policy.Policy{Allow: []policy.Rule{x, other}}, fails, 1, policy.Challenge},
		{"both", policy.Policy{Allow: []policy.Rule{both}}, lists, 1, policy.Challenge},
		{"both, the other does not list", policy.Policy{Allow: []policy.Rule{both}}, not, 0, policy.Refused},
		{"both, an outage", policy.Policy{Allow: []policy.Rule{both}}, fails, 1, policy.Unavailable},
		{"the challenge decides", policy.Policy{Allow: []policy.Rule{both}}, fails2(), 1, policy.Challenge},
		{"denied", policy.Policy{Allow: []policy.Rule{x}, Deny: []policy.Rule{other}}, lists, 0, policy.Refused},
		{"maybe denied", policy.Policy{Allow: []policy.Rule{x}, Deny: []policy.Rule{other}}, fails, 1, policy.Unavailable},
		{"not denied", policy.Policy{Allow: []policy.Rule{x}, Deny: []policy.Rule{other}}, not, 1, policy.Challenge},
		{"denies", policy.Policy{Allow: []policy.Rule{other}, Deny: []policy.Rule{x}}, not, 0, policy.Refused},
		{"denies one who is allowed", policy.Policy{Allow: []policy.Rule{other}, Deny: []policy.Rule{x}}, lists, 0, policy.Challenge},
		{"on trial", policy.Policy{Allow: []policy.Rule{trial, other}}, not, 0, policy.Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &origin{}
			s := newSet(t, c.policy, admission.Options{}, member("x", o.poller()), member("other", sourcetest.NewFake(c.other)))
			s.Start(t.Context(), nil)
			o.lists.Store(true)
			wantOutcome(t, before(t, s), c.want)
			o.want(t, 1+c.polls)
			if s.Status()[1].Refreshed != uint64(1+c.polls) {
				t.Errorf("status %+v", s.Status()[1])
			}
		})
	}
}

// TestManyMissesShareOnePoll: a fleet that boots at once causes one poll; a machine that comes
// during a poll waits for that poll; and all are answered in time.
func TestManyMissesShareOnePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{takes: 2 * time.Second}
		f, poll := o.poller(), make(chan struct{})
		f.OnWatch = func(ctx context.Context, changed func()) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-poll:
					changed()
				}
			}
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		o.lists.Store(true)
		storm := func() {
			begun := time.Now()
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					wantOutcome(t, before(t, s), policy.Challenge)
					if took := time.Since(begun); took > 2*time.Second {
						t.Errorf("took %v", took)
					}
				})
			}
			all.Wait()
		}
		storm()
		o.want(t, 2)

		o.served.Store(false)
		poll <- struct{}{}
		time.Sleep(time.Second)
		storm()
		o.want(t, 3)
		s.Close()
	})
}

// TestListedDuringAPoll: a machine that was listed after the poll under way had read the
// list, and comes before that poll ends, is not turned away: another poll is made for it.
func TestListedDuringAPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{takes: time.Second}
		f, poll := o.poller(), make(chan struct{})
		f.OnWatch = func(ctx context.Context, changed func()) error {
			<-poll
			changed()
			<-ctx.Done()
			return nil
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		close(poll)
		time.Sleep(500 * time.Millisecond) // it has read the origin
		o.lists.Store(true)
		wantOutcome(t, before(t, s), policy.Challenge)
		o.want(t, 3)
		s.Close()
	})
}

// TestChangeDuringAnEarlyPoll: a change that is told during a poll is not lost: another poll is
// made after it.
func TestChangeDuringAnEarlyPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{takes: 2 * time.Second}
		f, told := o.poller(), make(chan struct{})
		f.OnWatch = func(ctx context.Context, changed func()) error {
			<-told
			changed()
			<-ctx.Done()
			return nil
		}
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		var all sync.WaitGroup
		all.Go(func() { wantOutcome(t, before(t, s), policy.Refused) })
		synctest.Wait() // the early one has read the origin
		o.lists.Store(true)
		close(told)
		all.Wait()
		time.Sleep(3 * time.Second)
		o.want(t, 3)
		if !o.served.Load() {
			t.Error("the change was lost")
		}
		s.Close()
	})
}

// TestEarlyPollThatFails: however the poll fails, the answer stays "not listed" and comes in
// time, and nothing is left waiting.
func TestEarlyPollThatFails(t *testing.T) {
	for name, bend := range map[string]func(*origin, *sourcetest.LoadingFake){
		"an error":          func(o *origin, _ *sourcetest.LoadingFake) { o.fail = errors.New("502 Bad Gateway") },
		"as slow as a poll": func(o *origin, _ *sourcetest.LoadingFake) { o.takes = time.Hour },
		"panics": func(_ *origin, f *sourcetest.LoadingFake) {
			f.OnLoad = func(context.Context) error { panic("nil map") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &origin{}
				f := o.poller()
				s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
				s.Start(t.Context(), nil)
				o.lists.Store(true)
				bend(o, f)
				begun := time.Now()
				d := before(t, s)
				wantOutcome(t, d, policy.Refused)
				if took := time.Since(begun); took > 5*time.Second || results(d) != "x=not_listed" {
					t.Errorf("%s after %v", results(d), took)
				}
				time.Sleep(time.Minute)
				s.Close()
			})
		})
	}
}

// TestNoEarlyPollOfWhoAsksForPatience: a web server that has asked to be left alone is not polled
// early, however many strangers attest.
func TestNoEarlyPollOfWhoAsksForPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		f := o.poller()
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		o.fail = sources.Later(errors.New("429 Too Many Requests"), 10*time.Minute)
		for range 100 {
			wantOutcome(t, before(t, s), policy.Refused)
		}
		o.want(t, 2)
		if next := s.Status()[0].Next; !next.Equal(time.Now().Add(10 * time.Minute)) {
			t.Errorf("the next poll is in %v", time.Until(next))
		}
		time.Sleep(9 * time.Minute)
		wantOutcome(t, before(t, s), policy.Refused)
		o.want(t, 2)
		s.Close()
	})
}

// TestStuckPollIsNotWaitedFor: a load that was left behind is not waited for, since otherwise
// every miss would take all of its time.
func TestStuckPollIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		o := &origin{}
		f := o.poller()
		s := newSet(t, policy.AnyOf("x"), admission.Options{LoadTimeout: time.Second}, member("x", f))
		s.Start(t.Context(), nil)
		f.OnLoad = func(context.Context) error { <-release; return errOutage }
		begun := time.Now()
		wantOutcome(t, before(t, s), policy.Refused)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("the first took %v", took)
		}
		wantOutcome(t, before(t, s), policy.Refused)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("both took %v", took)
		}
		close(release)
		synctest.Wait()
		s.Close()
	})
}

// TestEarlyPollAtTheEnd: a Set that stops ends its early poll; a Set that has stopped or was
// never started makes none; and a caller who leaves waits for nothing, while the others still
// do.
func TestEarlyPollAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		f := o.poller()
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		wantOutcome(t, before(t, s), policy.Refused)
		o.want(t, 0)
		s.Start(t.Context(), nil)
		o.takes = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		outcomes := make([]policy.Outcome, 2)
		begun := time.Now()
		all.Go(func() {
			outcomes[0] = s.BeforeChallenge(ctx, sourcetest.NewEvidence(t)).Outcome
			if time.Since(begun) != 0 {
				t.Error("a caller who has left waited")
			}
		})
		all.Go(func() { outcomes[1] = before(t, s).Outcome })
		synctest.Wait()
		cancel()
		synctest.Wait()
		s.Close()
		all.Wait()
		if took := time.Since(begun); took != 0 || !slices.Equal(outcomes, []policy.Outcome{0, 0}) {
			t.Errorf("%v after %v", outcomes, took)
		}
		wantOutcome(t, before(t, s), policy.Refused)
		o.want(t, 1)
	})
}

// TestPolledSourceThatIsAskedOutside: a source that is polled and also makes look-ups is asked
// again in the remaining time, and its last answer counts.
func TestPolledSourceThatIsAskedOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{}
		f := o.poller()
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		o.takes = 3 * time.Second
		var asked atomic.Int64
		f.Set(func(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
			if asked.Add(1) == 1 {
				return sources.Verdict{}, nil
			}
			<-ctx.Done()
			return sources.Verdict{}, ctx.Err()
		})
		begun := time.Now()
		wantOutcome(t, before(t, s), policy.Unavailable)
		if took := time.Since(begun); took > 5*time.Second || asked.Load() != 2 {
			t.Errorf("asked %d times in %v", asked.Load(), took)
		}
		s.Close()
	})
}
