package sources

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"
)

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

// recovered returns the error for what recover has returned. It is called by
// the deferred function, so that the stack is the one of the panic.
func recovered(r any) error {
	text := fmt.Sprint(r)
	return &panicError{text[:min(len(text), maxPanic)], debug.Stack()}
}

// guard calls f. A panic is its error, and an error is put into words here: its
// methods are the source's code too.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = recovered(r)
		}
	}()
	if err = f(); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// stackOf returns what is logged of an error: its text and, of a panic, the
// stack.
func stackOf(err error) []any {
	attrs := []any{slog.Any("error", err)}
	if p := (*panicError)(nil); errors.As(err, &p) {
		attrs = append(attrs, slog.String("stack", string(p.stack)))
	}
	return attrs
}

// graceOf returns how much earlier than the Set's own deadline a source's is.
func graceOf(timeout time.Duration) time.Duration {
	return min(100*time.Millisecond, timeout/10)
}
