package sources

import (
	"context"
	"errors"
	"testing"
	"time"
)

// silent is a source that must not be asked.
type silent struct{ t *testing.T }

func (s silent) Check(context.Context, *Evidence) (Verdict, error) {
	s.t.Error("the source was asked on behalf of nobody")
	return Verdict{}, nil
}

func (s silent) Refresh(context.Context) error { return nil }

// TestAbandonedBeforeItsTurn: a check that nobody waits for any more gives its
// slot back, or a busy source would lose its slots one by one; and it neither
// asks nor replies.
func TestAbandonedBeforeItsTurn(t *testing.T) {
	r := newRunner(Member{Name: "x", Source: silent{t}}, Options{Slots: 1}.withDefaults())
	replies := make(chan reply, 1)
	for name, ctx := range map[string]context.Context{"in time": t.Context(), "too late": past(t)} {
		c := check{deadline: time.Now().Add(time.Hour)}
		if !r.abandon(&c) {
			t.Fatalf("%s: a check that waits cannot be abandoned", name)
		}
		r.answer(ctx, &Evidence{}, 0, &c, replies)
		if len(r.slots) != 0 || len(replies) != 0 || r.stuck.Load() != 0 {
			t.Errorf("%s: %d slots are taken, %d replies, %d stuck", name, len(r.slots), len(replies), r.stuck.Load())
		}
	}
}

// TestAbandonedTooLate: a check that has just answered is not taken for stuck.
func TestAbandonedTooLate(t *testing.T) {
	r := newRunner(Member{Name: "x", Source: everybody{}}, Options{}.withDefaults())
	replies := make(chan reply, 1)
	c := check{deadline: time.Now().Add(time.Hour)}
	r.answer(t.Context(), &Evidence{}, 3, &c, replies)
	if r.abandon(&c) || r.stuck.Load() != 0 {
		t.Error("a check that has answered was abandoned")
	}
	if a := <-replies; a.source != 3 || !a.verdict.Listed || a.err != nil {
		t.Errorf("%+v", a)
	}
}

// everybody lists everybody.
type everybody struct{}

func (everybody) Check(context.Context, *Evidence) (Verdict, error) {
	return Verdict{Listed: true}, nil
}

// TestRefreshEndsAsItIsGivenUp: of a load that ends in the moment in which it is
// given up, the end counts.
func TestRefreshEndsAsItIsGivenUp(t *testing.T) {
	r := newRunner(Member{Name: "x", Source: silent{t}}, Options{}.withDefaults())
	ctx := t.Context()
	attempt, err := r.beginRefresh(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.endRefresh(ctx, nil)
	if err := r.leaveRefresh(ctx, time.Second); err == nil {
		t.Error("the one who gave up was told that it succeeded")
	}
	if r.lastError() != nil || !r.hasLoaded() {
		t.Errorf("loaded %v, error %v", r.hasLoaded(), r.lastError())
	}
	if next, err := r.beginRefresh(ctx); err != nil {
		t.Errorf("the next one: %v", err)
	} else if r.endAttempt(attempt); r.attempt != next {
		t.Error("the end of one attempt ended the next one")
	}
	r.endRefresh(ctx, nil)
	if _, err := r.beginRefresh(past(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("one after the end: %v", err)
	}
}

// past returns a context that has ended.
func past(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
