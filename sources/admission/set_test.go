package admission_test

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// counted is a source that counts its life.
type counted struct {
	sourcetest.LoadingFake
	loads, running atomic.Int64
}

func newCounted() *counted {
	c := &counted{}
	c.OnLoad = func(context.Context) error {
		c.loads.Add(1)
		return nil
	}
	c.OnWatch = func(ctx context.Context, _ func()) error {
		c.running.Add(1)
		defer c.running.Add(-1)
		<-ctx.Done()
		return nil
	}
	return c
}

func (c *counted) want(t *testing.T, what string, loads, running int64) {
	t.Helper()
	if l, r := c.loads.Load(), c.running.Load(); l != loads || r != running {
		t.Errorf("%s: %d loads, %d running, want %d and %d", what, l, r, loads, running)
	}
}

// TestTakeOver: a reconfiguration keeps the sources that have not changed, with everything that
// they have loaded, and no others; each source stops with the last Set that runs it.
func TestTakeOver(t *testing.T) {
	type config struct{ Path string }
	with := func(m admission.Member, c any) admission.Member {
		m.Config = c
		return m
	}
	kind := func(m admission.Member, k string) admission.Member {
		m.Kind = k
		return m
	}
	for _, c := range []struct {
		name        string
		first, next admission.Member
		taken       bool
	}{
		{"equal", with(member("x", nil), &config{"a"}), with(member("x", nil), &config{"a"}), true},
		{
			"equal but for attributes", member("x", nil),
			admission.Member{Name: "x", Kind: "fake", Config: "x", NoAttributes: true},
			true,
		},
		{"another configuration", with(member("x", nil), config{"a"}), with(member("x", nil), config{"b"}), false},
		{"another type", with(member("x", nil), config{"a"}), with(member("x", nil), &config{"a"}), false},
		{"another kind", member("x", nil), kind(member("x", nil), "other"), false},
		{"another name", with(member("y", nil), config{"a"}), with(member("x", nil), config{"a"}), false},
		{"no configuration", with(member("x", nil), nil), with(member("x", nil), nil), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				old, fresh := newCounted(), newCounted()
				old.Set(sourcetest.Lists(named("old")))
				fresh.Set(sourcetest.Lists(named("fresh")))
				c.first.Source, c.next.Source = old, fresh
				one := newSet(t, policy.AnyOf(c.first.Name), admission.Options{}, c.first)
				one.Start(t.Context(), nil)
				two := newSet(t, policy.AnyOf("x"), admission.Options{}, c.next)
				two.Start(t.Context(), one)
				synctest.Wait()
				old.want(t, "the old one beside the new", 1, 1)
				one.Close()
				one.Close()
				ev := sourcetest.NewEvidence(t)
				d := attest(t, two, ev)
				if c.taken {
					old.want(t, "taken over", 1, 1)
					fresh.want(t, "dropped", 0, 0)
				} else {
					old.want(t, "stopped", 1, 0)
					fresh.want(t, "started", 1, 1)
				}
				if n, _, _ := old.Calls(); (n == 2) != c.taken || d.Outcome != policy.Admitted {
					t.Errorf("the old source was asked %d times; %v", n, d.Outcome)
				}
				if d := attest(t, one, ev); d.Outcome != policy.Admitted {
					t.Errorf("on the closed Set: %v: %s", d.Outcome, d.Explain())
				}
				two.Close()
				old.want(t, "at the end", 1, 0)
				if fresh.running.Load() != 0 {
					t.Error("a source runs after its Set was closed")
				}
			})
		})
	}
}

// TestTakeOverInARow: the source of the first of many configurations is still
// the one that answers.
func TestTakeOverInARow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newCounted()
		var last *admission.Set
		for i := range 20 {
			c := first
			if i > 0 {
				c = newCounted()
			}
			s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", c))
			s.Start(t.Context(), last)
			if last != nil {
				last.Close()
			}
			last = s
		}
		synctest.Wait()
		first.want(t, "after 20 configurations", 1, 1)
		last.Close()
		first.want(t, "after the last", 1, 0)
	})
}

// TestNothingToTakeOver: nothing is taken over from a Set that does not run: a Set that was
// never started, a closed Set, or the Set itself.
func TestNothingToTakeOver(t *testing.T) {
	for name, prepare := range map[string]func(s *admission.Set){
		"never started": func(*admission.Set) {},
		"closed": func(s *admission.Set) {
			s.Start(context.Background(), nil)
			s.Close()
		},
		"closed unstarted": func(s *admission.Set) { s.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", newCounted()))
				prepare(one)
				c := newCounted()
				two := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", c))
				two.Start(t.Context(), one)
				synctest.Wait()
				c.want(t, "started", 1, 1)
				two.Close()
			})
		})
	}
	c := newCounted()
	s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", c))
	s.Start(t.Context(), s)
	s.Close()
	c.want(t, "started with itself", 1, 0)
}

// TestStartOnce: a second Start, and a Start after Close, start nothing, since nobody would
// stop it.
func TestStartOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounted()
		s := newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", c))
		s.Start(t.Context(), nil)
		s.Start(t.Context(), nil)
		synctest.Wait()
		c.want(t, "started twice", 1, 1)
		s.Close()
		s.Start(t.Context(), nil)
		c.want(t, "started after Close", 1, 0)

		c = newCounted()
		s = newSet(t, policy.AnyOf("x"), admission.Options{}, member("x", c))
		s.Close()
		s.Start(t.Context(), nil)
		synctest.Wait()
		c.want(t, "closed before Start", 0, 0)
	})
}

// TestReconfigurationUnderLoad: Sets come and go while attestations run on the Set that was
// current when they began; none fails, and nothing is left. The race detector sees the rest.
func TestReconfigurationUnderLoad(t *testing.T) {
	var current atomic.Pointer[admission.Set]
	next := func(i int) {
		kept, changed := newCounted(), newCounted()
		kept.Set(sourcetest.Lists(sources.Attributes{}))
		changed.Set(sourcetest.NeedsChallenge(sourcetest.Lists(sources.Attributes{})))
		m := member("changed", changed)
		m.Config = i
		both := allow(policy.Rule{All: []string{"kept", "changed"}})
		s := newSet(t, both, admission.Options{}, member("kept", kept), m)
		s.Start(t.Context(), current.Load())
		if previous := current.Swap(s); previous != nil {
			previous.Close()
		}
	}
	next(0)
	ev := sourcetest.NewEvidence(t)
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := current.Load()
				if d := attest(t, s, ev); d.Outcome != policy.Admitted {
					t.Errorf("%v: %s", d.Outcome, d.Explain())
					return
				}
				_ = s.Status()
			}
		})
	}
	for i := range 100 {
		next(i)
		runtime.Gosched()
	}
	close(stop)
	load.Wait()
	current.Load().Close()
}
