package sources_test

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
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An origin is where a polled list comes from.
type origin struct {
	lists, served atomic.Bool // the TPM: at the origin, and in the list as it was polled
	polls, early  atomic.Int64
	limit         int64         // of early refreshes
	takes         time.Duration // to poll
	fail          error
}

// poller returns a source that follows the origin when it is told to.
func (o *origin) poller() *sourcetest.PollingFake {
	f := &sourcetest.PollingFake{OnRefreshEarly: func() bool { return o.early.Add(1) <= o.limit }}
	f.OnRefresh = func(ctx context.Context) error {
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

func (o *origin) want(t *testing.T, polls, early int64) {
	t.Helper()
	if p, e := o.polls.Load(), o.early.Load(); p != polls || e != early {
		t.Errorf("%d polls, asked for %d early ones; want %d, %d", p, e, polls, early)
	}
}

// before returns the decision of the first step.
func before(t *testing.T, s *sources.Set) sources.Decision {
	t.Helper()
	return s.BeforeChallenge(t.Context(), sourcetest.NewEvidence(t))
}

func wantOutcome(t *testing.T, d sources.Decision, want sources.Outcome) {
	t.Helper()
	if d.Outcome != want {
		t.Errorf("%v, want %v: %s", d.Outcome, want, d.Explain())
	}
}

// TestListedAMomentAgo: a machine that an operator has just listed is not turned
// away until the next poll, and one that is still not listed is polled for only as
// often as the source's limit allows.
func TestListedAMomentAgo(t *testing.T) {
	o := &origin{limit: 2}
	s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", o.poller()))
	s.Start(t.Context(), nil)
	o.lists.Store(true)
	wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), sources.Admitted)
	o.want(t, 2, 1)
	wantOutcome(t, attest(t, s, sourcetest.NewEvidence(t)), sources.Admitted)
	o.want(t, 2, 1) // no miss

	o.lists.Store(false)
	o.served.Store(false)
	for range 100 {
		wantOutcome(t, before(t, s), sources.Refused)
	}
	if o.polls.Load() != 3 {
		t.Errorf("a stranger caused %d polls", o.polls.Load()-2)
	}
}

// TestPolledOnlyWhereItHelps: nobody is polled for a machine that is admitted or
// refused whatever a poll would show, for a rule on trial, or for a deny rule,
// which strangers would use to poll at will.
func TestPolledOnlyWhereItHelps(t *testing.T) {
	x := sources.Rule{Name: "x", Any: []string{"x"}}
	other := sources.Rule{Name: "o", Any: []string{"other"}}
	both := sources.Rule{Name: "b", All: []string{"x", "other"}}
	trial := x
	trial.Trial = true
	lists, not := sourcetest.Lists(sources.Attributes{}), sourcetest.ListsNot()
	fails := sourcetest.Fails(errOutage)
	for _, c := range []struct {
		name   string
		policy sources.Policy
		other  sourcetest.Answer
		polls  int64 // but the first
		want   sources.Outcome
	}{
		{"one of two", sources.Policy{Allow: []sources.Rule{x, other}}, not, 1, sources.Challenge},
		{"one of two, the other lists", sources.Policy{Allow: []sources.Rule{x, other}}, lists, 0, sources.Challenge},
		{"one of two, an outage", sources.Policy{Allow: []sources.Rule{x, other}}, fails, 1, sources.Challenge},
		{"both", sources.Policy{Allow: []sources.Rule{both}}, lists, 1, sources.Challenge},
		{"both, the other does not list", sources.Policy{Allow: []sources.Rule{both}}, not, 0, sources.Refused},
		{"both, an outage", sources.Policy{Allow: []sources.Rule{both}}, fails, 1, sources.Unavailable},
		{"the challenge decides", sources.Policy{Allow: []sources.Rule{both}}, fails2(), 1, sources.Challenge},
		{"denied", sources.Policy{Allow: []sources.Rule{x}, Deny: []sources.Rule{other}}, lists, 0, sources.Refused},
		{"maybe denied", sources.Policy{Allow: []sources.Rule{x}, Deny: []sources.Rule{other}}, fails, 1, sources.Unavailable},
		{"not denied", sources.Policy{Allow: []sources.Rule{x}, Deny: []sources.Rule{other}}, not, 1, sources.Challenge},
		{"denies", sources.Policy{Allow: []sources.Rule{other}, Deny: []sources.Rule{x}}, not, 0, sources.Refused},
		{"denies one who is allowed", sources.Policy{Allow: []sources.Rule{other}, Deny: []sources.Rule{x}}, lists, 0, sources.Challenge},
		{"on trial", sources.Policy{Allow: []sources.Rule{trial, other}}, not, 0, sources.Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &origin{limit: 10}
			s := newSet(t, c.policy, sources.Options{}, member("x", o.poller()), member("other", sourcetest.NewFake(c.other)))
			s.Start(t.Context(), nil)
			o.lists.Store(true)
			wantOutcome(t, before(t, s), c.want)
			o.want(t, 1+c.polls, c.polls)
			if s.Status()[1].Refreshed != uint64(1+c.polls) {
				t.Errorf("status %+v", s.Status()[1])
			}
		})
	}
}

// TestManyMissesShareOnePoll: a fleet that boots at once is one poll; whoever
// comes while the source polls by itself waits for that; and all are answered in
// their time.
func TestManyMissesShareOnePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{limit: 1000, takes: 2 * time.Second}
		f, poll := o.poller(), make(chan struct{})
		f.OnRun = func(ctx context.Context, refresh func() error) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-poll:
				}
				if err := refresh(); err != nil {
					t.Errorf("the source's own poll: %v", err)
				}
			}
		}
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		o.lists.Store(true)
		storm := func() {
			begun := time.Now()
			var all sync.WaitGroup
			for range 1000 {
				all.Go(func() {
					wantOutcome(t, before(t, s), sources.Challenge)
					if took := time.Since(begun); took > 2*time.Second {
						t.Errorf("took %v", took)
					}
				})
			}
			all.Wait()
		}
		storm()
		o.want(t, 2, 1)

		o.served.Store(false)
		poll <- struct{}{}
		synctest.Wait()
		time.Sleep(time.Second)
		storm()
		o.want(t, 3, 1)
		s.Close()
	})
}

// TestOwnPollAfterAnEarlyOne: a change that a source has been told of while an
// early refresh was under way is not lost: its own refresh is made after it.
func TestOwnPollAfterAnEarlyOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{limit: 1, takes: 2 * time.Second}
		f, changed := o.poller(), make(chan struct{})
		f.OnRun = func(ctx context.Context, refresh func() error) error {
			<-changed
			if err := refresh(); err != nil || !o.served.Load() {
				t.Errorf("%v, serves the change: %v", err, o.served.Load())
			}
			<-ctx.Done()
			return nil
		}
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
		s.Start(t.Context(), nil)
		var all sync.WaitGroup
		all.Go(func() { wantOutcome(t, before(t, s), sources.Refused) })
		synctest.Wait() // the early one has read the origin
		o.lists.Store(true)
		close(changed)
		all.Wait()
		time.Sleep(3 * time.Second)
		o.want(t, 3, 1)
		s.Close()
	})
}

// TestEarlyRefreshThatFails: the answer stays "not listed", in time, however the
// refresh fails, and nothing is left waiting.
func TestEarlyRefreshThatFails(t *testing.T) {
	for name, bend := range map[string]func(*origin, *sourcetest.PollingFake){
		"an error":             func(o *origin, _ *sourcetest.PollingFake) { o.fail = errors.New("502 Bad Gateway") },
		"as slow as a refresh": func(o *origin, _ *sourcetest.PollingFake) { o.takes = time.Hour },
		"panics": func(o *origin, f *sourcetest.PollingFake) {
			f.OnRefresh = func(context.Context) error { panic("nil map") }
		},
		"panics when asked": func(o *origin, f *sourcetest.PollingFake) {
			f.OnRefreshEarly = func() bool { panic("nil map") }
		},
		"hangs when asked": func(o *origin, f *sourcetest.PollingFake) {
			f.OnRefreshEarly = func() bool { time.Sleep(time.Minute); return false }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := &origin{limit: 1}
				f := o.poller()
				s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
				s.Start(t.Context(), nil)
				o.lists.Store(true)
				bend(o, f)
				begun := time.Now()
				d := before(t, s)
				wantOutcome(t, d, sources.Refused)
				if took := time.Since(begun); took > 5*time.Second || results(d) != "x=not_listed" {
					t.Errorf("%s after %v", results(d), took)
				}
				time.Sleep(time.Minute)
				s.Close()
			})
		})
	}
}

// TestStuckRefreshIsNotWaitedFor: of a refresh that was left behind nobody expects
// anything, or every miss would take its whole time.
func TestStuckRefreshIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		o := &origin{limit: 5}
		f := o.poller()
		s := newSet(t, sources.AnyOf("x"), sources.Options{RefreshTimeout: time.Second}, member("x", f))
		s.Start(t.Context(), nil)
		f.OnRefresh = func(context.Context) error { <-release; return errOutage }
		begun := time.Now()
		wantOutcome(t, before(t, s), sources.Refused)
		if took := time.Since(begun); took != time.Second {
			t.Errorf("the first took %v", took)
		}
		wantOutcome(t, before(t, s), sources.Refused)
		if took := time.Since(begun); took != time.Second || o.early.Load() != 1 {
			t.Errorf("both took %v, and %d early refreshes were asked for", took, o.early.Load())
		}
		close(release)
		synctest.Wait()
		if st := s.Status()[0]; st.Refreshed != 1 || st.Failed != 1 || st.Err == nil {
			t.Errorf("status %+v", st)
		}
		s.Close()
	})
}

// TestEarlyRefreshAtTheEnd: a Set that stops takes the early refresh with it, one
// that has stopped or never began makes none, and a caller who leaves waits for
// nothing while the others still do.
func TestEarlyRefreshAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{limit: 10}
		f := o.poller()
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", f))
		wantOutcome(t, before(t, s), sources.Refused)
		o.want(t, 0, 0)
		s.Start(t.Context(), nil)
		o.takes = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		outcomes := make([]sources.Outcome, 2)
		begun := time.Now()
		all.Go(func() {
			outcomes[0] = s.BeforeChallenge(ctx, sourcetest.NewEvidence(t)).Outcome
			if time.Since(begun) != 0 {
				t.Error("one who has left waited")
			}
		})
		all.Go(func() { outcomes[1] = before(t, s).Outcome })
		synctest.Wait()
		cancel()
		synctest.Wait()
		s.Close()
		all.Wait()
		if took := time.Since(begun); took != 0 || !slices.Equal(outcomes, []sources.Outcome{0, 0}) {
			t.Errorf("%v after %v", outcomes, took)
		}
		wantOutcome(t, before(t, s), sources.Refused)
		o.want(t, 1, 1)
	})
}

// TestPolledSourceThatIsAskedOutside: a poller that looks things up is asked again
// in what is left of the time, and its last word counts.
func TestPolledSourceThatIsAskedOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &origin{limit: 1}
		f := o.poller()
		s := newSet(t, sources.AnyOf("x"), sources.Options{}, member("x", poller{f}))
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
		wantOutcome(t, before(t, s), sources.Unavailable)
		if took := time.Since(begun); took > 5*time.Second || asked.Load() != 2 {
			t.Errorf("asked %d times in %v", asked.Load(), took)
		}
		s.Close()
	})
}

// poller is a Poller and nothing else.
type poller struct{ sources.Poller }
