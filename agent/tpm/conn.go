package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// makeTimeout is how long making a key may take: the kernel driver's limit.
	makeTimeout = 5 * time.Minute
	// commandTimeout is how long any other command may take. A TPM needs two
	// seconds at most; the command may wait for other programs' commands.
	commandTimeout = 20 * time.Second
	// grace is how long Do waits after its context has ended. Most commands
	// take less.
	grace = time.Second
	// maxResends is how often a command is sent again if the TPM was not ready
	// for it. The first pause is firstPause, and each further pause is twice as
	// long as the one before: about ten seconds altogether.
	maxResends = 9
	firstPause = 20 * time.Millisecond
)

// errTimeout means that a command has exceeded its time limit.
var errTimeout = errors.New("the TPM does not answer")

// Do runs f, which uses a TPM, in a goroutine, and returns its error. If ctx ends, Do
// returns within a second even if f has not returned: a TPM's command cannot be
// cancelled. f then continues until that command has ended and f has flushed what the
// command has made. The caller must not use the TPM before f has returned.
func Do(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		return context.Cause(ctx)
	}
}

// conn is a connection to a TPM, and implements transport.TPM. If its context ends,
// Send waits for the command under way; the next Send fails.
type conn struct {
	// ctx is the context of the attestation.
	ctx     context.Context //nolint:containedctx // transport.TPM's Send takes none
	channel channel
	// loaded are the keys that this connection has loaded and not flushed.
	loaded []tpm2.TPMHandle
	// err is the first failure of the channel. After it, a response might belong to
	// an earlier command, so nothing more is sent.
	err error
}

func newConn(ctx context.Context, ch channel) *conn {
	return &conn{ctx: ctx, channel: ch}
}

func (c *conn) close() { _ = c.channel.Close() } // nothing depends on its success

// detach allows commands even if the context has ended, until restore is called.
// Flushing needs that.
func (c *conn) detach() (restore func()) {
	ctx := c.ctx
	c.ctx = context.WithoutCancel(ctx)
	return func() { c.ctx = ctx }
}

// Send runs a command and returns the response. If the TPM was not ready for the
// command, the command has had no effect, and Send sends it again (part 2, 6.6.3:
// TPM_RC_RETRY, TPM_RC_TESTING, TPM_RC_YIELDED).
func (c *conn) Send(command []byte) ([]byte, error) {
	pause := firstPause
	for resends := 0; ; resends++ {
		rsp, err := c.sendOnce(command)
		if err != nil || resends == maxResends || !notYet(rsp) {
			return rsp, err
		}
		if err := sleep(c.ctx, pause); err != nil {
			return nil, err
		}
		pause *= 2
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *conn) sendOnce(command []byte) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if c.ctx.Err() != nil {
		return nil, context.Cause(c.ctx)
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(c.ctx), timeLimit(command), errTimeout)
	defer cancel()
	rsp, err := c.channel.roundTrip(ctx, command)
	if err != nil {
		c.err = err
		return nil, err
	}
	return rsp, nil
}

// timeLimit returns how long a command may take.
func timeLimit(command []byte) time.Duration {
	if len(command) >= headerSize {
		switch tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
		case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreate:
			return makeTimeout
		}
	}
	return commandTimeout
}

// notYet reports whether the TPM was not ready for the command.
func notYet(rsp []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded:
		return true
	}
	return false
}

// execute runs a command. If go-tpm cannot parse the response, or panics over it,
// execute returns an error.
func execute[C tpm2.Command[R, *R], R any](c transport.TPM, command C) (rsp *R, err error) {
	defer unreadable(&err)
	return command.Execute(c)
}

// unreadable must be deferred. It turns a panic over a TPM's response into an error.
func unreadable(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("read the TPM's answer: %v", r)
	}
}
