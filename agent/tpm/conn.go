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
	// commandTimeout is how long a command may take where nobody waits less
	// long. It is the kernel driver's limit for making a key.
	commandTimeout = 5 * time.Minute
	// grace is how long a command that is under way may still take when the
	// attestation is given up: most end within it, and then what they made
	// can be flushed.
	grace = time.Second
	// cleanupTimeout is how long flushing may take.
	cleanupTimeout = 5 * time.Second
	// maxResends is how often a command is sent again that a TPM was not
	// ready for; firstPause is the pause before the first time, and each
	// further one is twice as long: about ten seconds altogether.
	maxResends = 9
	firstPause = 20 * time.Millisecond
)

// errTimeout is the end of a command that took longer than commandTimeout.
var errTimeout = errors.New("the TPM does not answer")

// conn is a connection to a TPM: a transport.TPM. It ends with its context.
type conn struct {
	// ctx is of the attestation that the connection serves.
	ctx     context.Context //nolint:containedctx // transport.TPM's Send takes none
	channel channel
	timeout time.Duration
	// err is the failure after which commands and responses are out of step.
	err error
}

func newConn(ctx context.Context, ch channel) *conn {
	return &conn{ctx: ctx, channel: ch, timeout: commandTimeout}
}

// Send runs a command. One that the TPM was not ready for has had no effect and
// is sent again (part 2, 6.6.3: TPM_RC_RETRY, TPM_RC_TESTING, TPM_RC_YIELDED).
func (c *conn) Send(command []byte) ([]byte, error) {
	pause := firstPause
	for resends := 0; ; resends++ {
		rsp, err := c.sendOnce(command)
		if err != nil || resends == maxResends || !notYet(rsp) {
			return rsp, err
		}
		if err := c.sleep(pause); err != nil {
			return nil, err
		}
		pause *= 2
	}
}

func (c *conn) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

func (c *conn) sendOnce(command []byte) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	if c.ctx.Err() != nil {
		return nil, context.Cause(c.ctx)
	}
	ctx, cancel := c.commandContext()
	defer cancel()
	rsp, err := c.channel.roundTrip(ctx, command)
	if err == nil {
		err = checkResponse(rsp)
	}
	if err != nil {
		c.err = err
		return nil, err
	}
	return rsp, nil
}

// commandContext is the context of one command: it ends after the time limit,
// or a while after the attestation's own.
func (c *conn) commandContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(c.ctx), c.timeout, errTimeout)
	ctx, cancelCause := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.ctx, func() {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-t.C:
			cancelCause(context.Cause(c.ctx))
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		stop()
		cancelCause(nil)
		cancel()
	}
}

// cleanup lets a connection whose attestation was given up flush what is loaded.
func (c *conn) cleanup() context.CancelFunc {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), cleanupTimeout)
	c.ctx = ctx
	return cancel
}

// checkResponse checks a response's header (part 1, 18.2): one that lies about
// itself comes from no TPM 2.0, or belongs to another command.
func checkResponse(rsp []byte) error {
	if len(rsp) < headerSize || len(rsp) > maxResponse ||
		int(binary.BigEndian.Uint32(rsp[2:])) != len(rsp) {
		return &Error{
			Class: ErrSetup, Err: errors.New("the answer does not come from a TPM"),
			Hint: "check that device names a TPM 2.0",
		}
	}
	switch tag := tpm2.TPMST(binary.BigEndian.Uint16(rsp)); tag {
	case tpm2.TPMSTNoSessions, tpm2.TPMSTSessions:
		return nil
	case tpm2.TPMSTRspCommand:
		return &Error{
			Class: ErrSetup, Err: errors.New("the answer comes from a TPM 1.2"),
			Hint: "a TPM 2.0 is needed: some machines can switch theirs in the firmware's setup",
		}
	default:
		return &Error{
			Class: ErrSetup, Err: fmt.Errorf("the answer has the tag %#04x: not a TPM 2.0", uint16(tag)),
			Hint: "check that device names a TPM 2.0",
		}
	}
}

// notYet reports whether the TPM was not ready for the command.
func notYet(rsp []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded:
		return true
	}
	return false
}

// execute runs a command. An answer that cannot be read, however broken it is,
// fails this command and nothing else.
func execute[C tpm2.Command[R, *R], R any](c transport.TPM, command C) (rsp *R, err error) {
	defer unreadable(&err)
	return command.Execute(c)
}

// unreadable, deferred, turns a panic over a TPM's answer into an error.
func unreadable(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("read the TPM's answer: %v", r)
	}
}
