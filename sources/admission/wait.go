package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// A Lane limits and waits for calls that may hang, for example on a mount whose server is gone.
// Each call runs in its own goroutine and takes one of a few slots. Its caller waits until a
// deadline. A call that has not returned by then is stuck, and keeps its slot until it returns. So
// there are never more stuck goroutines than slots, however many callers a hanging source has.
type Lane struct {
	what  string
	slots chan struct{}
	told  func(stuck bool)

	mu    sync.Mutex   // held while stuck changes and told is called, to keep the calls in order
	stuck atomic.Int64 // calls
}

// NewLane returns a lane. what is a word for its calls in errors, such as "checks". told is called
// with true when the first call gets stuck, and with false when no call is stuck any longer. It
// must not block.
func NewLane(what string, slots int, told func(stuck bool)) *Lane {
	return &Lane{what: what, slots: make(chan struct{}, slots), told: told}
}

// A call is one call in a lane. The goroutine that waits and the goroutine of the call use its
// state to agree on which of them finishes it.
type call struct {
	lane  *Lane
	state atomic.Int32
	left  chan struct{} // closed if the call is abandoned before its turn
}

func (l *Lane) newCall() *call { return &call{lane: l, left: make(chan struct{})} }

const (
	waiting   int32 = iota // for a slot
	running                // in the source
	abandoned              // nobody waits for it
	ended
)

// start calls f as soon as there is a slot for it, and then done with f's error, unless the call is
// abandoned first. A panic of f becomes an error, and so does ending the goroutine. If ctx ends
// before there is a slot, done gets that error. done may be called before start returns, and must
// not block.
func (l *Lane) start(ctx context.Context, f func(context.Context) error, done func(error)) *call {
	c := l.newCall()
	go c.run(ctx, f, done)
	return c
}

func (c *call) run(ctx context.Context, f func(context.Context) error, done func(error)) {
	l := c.lane
	select {
	case l.slots <- struct{}{}:
	case <-c.left:
		return
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
		} else {
			l.noteReturned()
		}
	}()
	err = guard(func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return f(ctx)
	})
}

// apart calls f in its own goroutine and sends its error. It is for calls that have no deadline.
func apart(f func() error) <-chan error {
	replies := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() { replies <- err }()
		err = guard(f)
	}()
	return replies
}

// leave abandons the call if it is waiting for a slot, and reports whether it was. If so, neither f
// nor done will be called, and the call's goroutine ends at once and releases what f holds.
func (c *call) leave() bool {
	waits := c.state.CompareAndSwap(waiting, abandoned)
	if waits {
		close(c.left)
	}
	return waits
}

// abandon abandons the call: done will not be called. It returns false if the call has already
// ended, so that done has been or is being called.
func (c *call) abandon() bool {
	if c.leave() {
		return true
	}
	l := c.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.state.CompareAndSwap(running, abandoned) {
		return false
	}
	if l.stuck.Add(1) == 1 {
		l.told(true)
	}
	return true
}

// noteReturned records that a stuck call has returned.
func (l *Lane) noteReturned() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stuck.Add(-1) == 0 {
		l.told(false)
	}
}

// Do calls f and waits for it, but no longer than timeout. f sees a slightly earlier deadline, so
// that it can say why it failed. Do returns a panic of f as an error. If f has not returned in
// time, Do returns an error, and f continues in its own goroutine.
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

// graceOf returns how much earlier a source's deadline is than its caller's.
func graceOf(timeout time.Duration) time.Duration { return min(100*time.Millisecond, timeout/10) }

// errGoexit is the error of a call that ends its goroutine (runtime.Goexit).
var errGoexit = errors.New("the source ended its goroutine instead of returning")

// maxPanic is the maximum number of bytes that are kept of a panic's text.
const maxPanic = 512

// A panicError is the error of a call that panics.
type panicError struct {
	text  string
	stack []byte
}

func (p *panicError) Error() string { return "panic: " + p.text }

// guard calls f and returns its error, or a *panicError if it panics.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			text := textOf(r)
			err = &panicError{text[:min(len(text), maxPanic)], debug.Stack()}
		}
	}()
	return f()
}

// textOf returns the value of a panic as text. The value's methods are the source's code, too, and
// may panic.
func textOf(value any) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("a %T, which cannot be printed", value)
		}
	}()
	return fmt.Sprint(value)
}

// stackOf returns what is logged about an error: its text and, for a panic, the stack.
func stackOf(err error) []any {
	attrs := []any{slog.Any("error", err)}
	if p := (*panicError)(nil); errors.As(err, &p) {
		attrs = append(attrs, slog.String("stack", string(p.stack)))
	}
	return attrs
}

// sleep waits for d and returns false if ctx ends first.
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
