package ekca

import (
	"context"
	"errors"
	"fmt"
)

// aside runs work that may be stuck in the kernel (a mount whose server has
// gone) apart from those who wait for it, one piece at a time, so that a stuck
// one costs one goroutine whatever is asked later.
type aside struct{ busy chan struct{} }

func newAside() aside { return aside{busy: make(chan struct{}, 1)} }

// in runs f aside and returns what it does. Where ctx ends first, it returns
// ctx's error and f's result is lost. A panic in f is an error.
func in[T any](ctx context.Context, a aside, f func() (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("read the CA files: %w", err)
	}
	select {
	case a.busy <- struct{}{}:
	case <-ctx.Done():
		return zero, fmt.Errorf("the CA files' storage has not answered an earlier request yet: %w", ctx.Err())
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		r := result{err: errors.New("read the CA files: unexpected end")}
		defer func() {
			if p := recover(); p != nil {
				r = result{err: fmt.Errorf("read the CA files: panic: %v", p)}
			}
			<-a.busy
			done <- r
		}()
		r.value, r.err = f()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, fmt.Errorf("the CA files' storage does not answer: %w", ctx.Err())
	}
}
