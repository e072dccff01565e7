package admission

import (
	"context"
	"runtime"
	"testing"
)

// newTestLane is a lane with one slot.
func newTestLane() *Lane { return NewLane("checks", 1, func(bool) {}) }

// TestAbandonedBeforeItsTurn: an abandoned call gives its slot back, since a busy source would
// otherwise lose its slots one by one; and it neither asks nor replies.
func TestAbandonedBeforeItsTurn(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, ctx := range map[string]context.Context{"in time": t.Context(), "too late": ended} {
		l := newTestLane()
		c := l.newCall()
		if !c.abandon() {
			t.Fatalf("%s: a call that waits cannot be abandoned", name)
		}
		wrong := func(string) { t.Errorf("%s: a call that was abandoned went on", name) }
		c.run(ctx, func(context.Context) error { wrong("asked"); return nil }, func(error) { wrong("replied") })
		if len(l.slots) != 0 || l.stuck.Load() != 0 {
			t.Errorf("%s: %d slots are taken, %d stuck", name, len(l.slots), l.stuck.Load())
		}
	}
}

// TestAbandonedTooLate: a call that has just ended is not counted as stuck.
func TestAbandonedTooLate(t *testing.T) {
	l, replied := newTestLane(), false
	c := l.newCall()
	c.run(t.Context(), func(context.Context) error { return nil }, func(error) { replied = true })
	if c.abandon() || l.stuck.Load() != 0 || !replied {
		t.Error("a call that has ended was abandoned")
	}
}

// TestStuckIsToldInOrder: a call that returns at the moment at which it is given up may not
// leave "stuck" as the last line in the log.
func TestStuckIsToldInOrder(t *testing.T) {
	release, told := make(chan struct{}), make(chan bool, 2)
	l := NewLane("checks", 1, func(stuck bool) {
		if stuck {
			close(release)
			for range 1000 { // the call returns meanwhile
				runtime.Gosched()
			}
		}
		told <- stuck
	})
	asked := make(chan struct{})
	c := l.start(t.Context(), func(context.Context) error {
		close(asked)
		<-release
		return nil
	}, func(error) { t.Error("a call that was abandoned replied") })
	<-asked
	if !c.abandon() {
		t.Fatal("a call that hangs cannot be abandoned")
	}
	if first, last := <-told, <-told; !first || last {
		t.Errorf("stuck: %v, then %v", first, last)
	}
}
