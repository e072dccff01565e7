package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
)

// edge is what the plugins of this package have in common: the logger, the rule that only one call at a time uses
// the TPM, deadlines, and recovery from panics.
type edge struct {
	logger hclog.Logger
	turn   chan struct{} // of capacity 1; the call that has sent to it may use the TPM
}

func newEdge() edge { return edge{logger: hclog.NewNullLogger(), turn: make(chan struct{}, 1)} }

// SetLogger sets the logger. The plugin framework calls it before anything else.
func (e *edge) SetLogger(logger hclog.Logger) { e.logger = logger }

// closeTimeout is how long Close waits.
const closeTimeout = time.Second

// Close waits until no call uses the TPM, for a second at most: until then, keys may
// be in the TPM. SPIRE's SDK calls it when SPIRE is about to end the plugin, and package
// serve calls it after the last attestation has ended.
func (e *edge) Close() error {
	select {
	case e.turn <- struct{}{}:
		<-e.turn
		return nil
	case <-time.After(closeTimeout):
		return errors.New("the TPM is still in use: a key may be left in it")
	}
}

// use waits until nothing else uses the TPM and runs f, which uses it. If ctx ends, use
// returns within a second even if f has not returned. Nothing else uses the TPM before f
// has returned.
func (e *edge) use(ctx context.Context, f func() error) error { return e.inTurn(ctx, e.turn, f) }

// inTurn runs f when turn, a channel of capacity 1, has room. See use.
func (e *edge) inTurn(ctx context.Context, turn chan struct{}, f func() error) error {
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return tpm.Do(ctx, func() (err error) {
		defer func() { <-turn }()
		defer e.guard(&err)
		return f()
	})
}

// inTime runs read in turn and returns its result. If that takes longer than readTimeout, the error is hangs. See
// inTurn.
func inTime[T any](
	ctx context.Context, e *edge, turn chan struct{}, hangs error, read func() (*T, error),
) (*T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, hangs)
	defer cancel()
	var got *T
	err := e.inTurn(ctx, turn, func() (err error) {
		got, err = read()
		return err
	})
	if err != nil {
		return nil, err // got may still be written to
	}
	return got, nil
}

// failed returns the status for an error. FailedPrecondition means that somebody has to
// act, Unavailable that a later attempt may succeed. failed never returns
// PermissionDenied: SPIRE Agent would give up instead of trying again.
func failed(doing string, err error, unexpected codes.Code) error {
	code := unexpected
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = status.FromContextError(err).Code()
	case errors.Is(err, tpm.ErrSetup):
		code = codes.FailedPrecondition
	case errors.Is(err, tpm.ErrNotReady):
		code = codes.Unavailable
	}
	return status.Error(code, fmt.Sprintf("%s: %v", doing, err))
}

// guard must be deferred. It turns a panic into the error of one call, since SPIRE does not restart a plugin that
// has died.
func (e *edge) guard(err *error) {
	if r := recover(); r != nil {
		e.logger.Error("panic", "value", r, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "panic: %v", r)
	}
}
