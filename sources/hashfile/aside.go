package hashfile

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

// in runs f aside and returns what it does. Where ctx ends first, it returns an
// error, and what f returns in the end is given to drop, which may be nil. A
// panic in f is an error.
func in[T any](ctx context.Context, a aside, f func() (T, error), drop func(T)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("ask the list's storage: %w", err)
	}
	select {
	case a.busy <- struct{}{}:
	case <-ctx.Done():
		return zero, fmt.Errorf("the list's storage has not answered an earlier request yet: %w", ctx.Err())
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		r := result{err: errors.New("unexpected end")}
		defer func() {
			if p := recover(); p != nil {
				r = result{err: fmt.Errorf("panic: %v", p)}
			}
			<-a.busy
			select {
			case done <- r:
			case <-ctx.Done():
				if drop != nil && r.err == nil {
					drop(r.value)
				}
			}
		}()
		r.value, r.err = f()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, fmt.Errorf("the list's storage does not answer: %w", ctx.Err())
	}
}
