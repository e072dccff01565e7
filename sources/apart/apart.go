// Package apart runs what may be stuck in the kernel, on a mount whose server has
// gone, apart from those who wait for it.
package apart

import (
	"context"
	"errors"
	"fmt"
)

// A Lane runs one piece of work at a time, so that a stuck one costs one goroutine
// whatever is asked later. New makes one. It is safe for concurrent use.
type Lane struct {
	what string
	busy chan struct{}
}

// New returns a Lane. what is waited for there, in words for errors: "the list's
// storage".
func New(what string) Lane { return Lane{what, make(chan struct{}, 1)} }

// Do runs f and returns what it does. Where ctx ends first, it returns an error that
// is ctx's, and what f returns in the end without an error is given to drop, which may
// be nil. A panic in f is an error.
func Do[T any](ctx context.Context, l Lane, f func() (T, error), drop func(T)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("ask %s: %w", l.what, err)
	}
	select {
	case l.busy <- struct{}{}:
	case <-ctx.Done():
		return zero, fmt.Errorf("%s has not answered an earlier request yet: %w", l.what, ctx.Err())
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
			<-l.busy
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
		return zero, fmt.Errorf("%s does not answer: %w", l.what, ctx.Err())
	}
}
