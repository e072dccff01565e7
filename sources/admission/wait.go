package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// A Lane is the one way to wait for calls that may hang, on a mount whose server has gone
// for example. Each call runs in a goroutine of its own and takes one of a few slots. A
// caller waits until a deadline; a call that outlives it is stuck and keeps its slot
// until it returns. So a thousand callers of a source that hangs are no more stuck
// goroutines than there are slots.
type Lane struct {
	what  string
	slots chan struct{}
	stuck atomic.Int64
	told  func(stuck bool)
}

// NewLane returns a lane. what says in words what its calls are: "checks". told is called
// when a call is stuck and none was before, and when none is any more.
func NewLane(what string, slots int, told func(stuck bool)) *Lane {
	return &Lane{what: what, slots: make(chan struct{}, slots), told: told}
}

// A call is one call in a lane. Its state is what the one who waits and the goroutine of
// the call agree by.
type call struct {
	lane  *Lane
	state atomic.Int32
}

const (
	waiting   int32 = iota // for a slot
	running                // in the source
	abandoned              // nobody waits any more
	ended
)

// start calls f, as soon as there is a slot for it, and then done with its error, unless
// the call has been abandoned by then. A panic of f, and a call that ends its goroutine,
// are errors. If ctx ends before there is a slot, that is the error. done may be called
// before start returns, and must not block.
func (l *Lane) start(ctx context.Context, f func(context.Context) error, done func(error)) *call {
	c := &call{lane: l}
	go c.run(ctx, f, done)
	return c
}

func (c *call) run(ctx context.Context, f func(context.Context) error, done func(error)) {
	l := c.lane
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		if c.state.CompareAndSwap(waiting, ended) {
			done(fmt.Errorf("%d earlier %s have not returned: %w", cap(l.slots), l.what, ctx.Err()))
		}
		return
	}
	if !c.state.CompareAndSwap(waiting, running) {
		<-l.slots
		return
	}
	err := errGoexit
	defer func() {
		<-l.slots
		if c.state.Swap(ended) != abandoned {
			done(err)
		} else if l.stuck.Add(-1) == 0 {
			l.told(false)
		}
	}()
	err = guard(func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f(ctx)
	})
}

// apart calls f in a goroutine of its own and sends its error. It is for what is not
// waited for by a deadline.
func apart(f func() error) <-chan error {
	replies := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { replies <- err }()
		err = guard(f)
	}()
	return replies
}

// abandon gives the call up: done is not called any more. It reports false if the call
// has ended and done was called, or is being called.
func (c *call) abandon() bool {
	if c.state.CompareAndSwap(waiting, abandoned) {
		return true
	}
	stuck := c.lane.stuck.Add(1)
	if !c.state.CompareAndSwap(running, abandoned) {
		c.lane.stuck.Add(-1)
		return false
	}
	if stuck == 1 {
		c.lane.told(true)
	}
	return true
}

// Do calls f and waits for it for a time at most. f sees a deadline a little earlier, so
// that a call which obeys it can say why it failed. A panic of f is an error. If Do
// returns an error because f has not returned, f goes on in its own goroutine.
func (l *Lane) Do(ctx context.Context, timeout time.Duration, f func(context.Context) error) error {
	if int(l.stuck.Load()) >= cap(l.slots) {
		return fmt.Errorf("%d earlier %s have not returned", cap(l.slots), l.what)
	}
	grace := graceOf(timeout)
	within, cancel := context.WithTimeout(ctx, timeout-grace)
	defer cancel()
	replies := make(chan error, 1)
	c := l.start(within, f, func(err error) { replies <- err })
	select {
	case err := <-replies:
		return err
	case <-within.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-replies:
		return err
	case <-timer.C:
	}
	if c.abandon() {
		return fmt.Errorf("did not return within %v", timeout)
	}
	return <-replies
}

// graceOf returns how much earlier than the caller's deadline a source's is.
func graceOf(timeout time.Duration) time.Duration { return min(100*time.Millisecond, timeout/10) }

// errGoexit is what a call comes to that ends its goroutine (runtime.Goexit).
var errGoexit = errors.New("the source ended its goroutine instead of returning")

// maxPanic is how much of the text of a panic is kept, in bytes.
const maxPanic = 512

// A panicError is what a call comes to that panics.
type panicError struct {
	text  string
	stack []byte
}

func (p *panicError) Error() string { return "panic: " + p.text }

// guard calls f. A panic is its error, and an error is put into words here: its methods
// are the source's code too.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			text := fmt.Sprint(r)
			err = &panicError{text[:min(len(text), maxPanic)], debug.Stack()}
		}
	}()
	if err = f(); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// stackOf returns what is logged of an error: its text and, of a panic, the stack.
func stackOf(err error) []any {
	attrs := []any{slog.Any("error", err)}
	if p := (*panicError)(nil); errors.As(err, &p) {
		attrs = append(attrs, slog.String("stack", string(p.stack)))
	}
	return attrs
}

// sleep waits for d and reports false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
