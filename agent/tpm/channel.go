package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// tagSize is the size of a response's tag.
	tagSize = 2
	// headerSize is the size of a response's header: tag, size, code.
	headerSize = 10
	// maxResponse is the size of the largest response that is read. TPMs have
	// buffers of 4096 bytes (part 2, TPM_PT_MAX_RESPONSE_SIZE).
	maxResponse = 4096
)

// A channel carries one command at a time to a TPM.
type channel interface {
	// roundTrip sends a command and returns the whole response, whose header has the form of a TPM 2.0's. If ctx
	// ends first, roundTrip returns an error. After an error, the channel can only be closed.
	roundTrip(ctx context.Context, command []byte) ([]byte, error)
	Close() error
}

// socketChannel is a connection to a software TPM through the Unix socket at path.
type socketChannel struct {
	net.Conn
	path string
}

func (c *socketChannel) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rsp, err := exchange(c.Conn, command)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, explainSocket(c.path, err)
	}
	return rsp, nil
}

// deviceChannel is an open TPM device. The kernel runs a command within write(2).
// Nothing interrupts that call; the kernel ends it after its own time limit, which
// is minutes at most. So if ctx ends, roundTrip returns, and the goroutine with the
// call stays behind until the kernel ends it.
type deviceChannel struct{ dev io.ReadWriteCloser }

func (c *deviceChannel) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	type result struct {
		rsp []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		rsp, err := exchange(c.dev, command)
		done <- result{rsp, err}
	}()
	select {
	case r := <-done:
		return r.rsp, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *deviceChannel) Close() error { return c.dev.Close() }

// exchange writes a command and reads its response. Each read has room for the largest
// response, since older kernels discard what a read leaves. exchange checks the tag
// before it waits for the rest of the header: a peer that is not a TPM may send less
// than a header and then wait.
func exchange(tpm io.ReadWriter, command []byte) ([]byte, error) {
	if _, err := tpm.Write(command); err != nil {
		return nil, err
	}
	rsp := make([]byte, maxResponse)
	n, err := io.ReadAtLeast(tpm, rsp, tagSize)
	if err != nil {
		return nil, err
	}
	if err := checkTag(rsp); err != nil {
		return nil, err
	}
	if n, err = readUpTo(tpm, rsp, n, headerSize); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(rsp[2:])
	if size < headerSize || size > maxResponse {
		return nil, noTPM("its response is %d bytes long", size)
	}
	n, err = readUpTo(tpm, rsp, n, int(size))
	if err == nil && n != int(size) {
		err = noTPM("its response has %d bytes instead of %d", n, size)
	}
	return rsp[:n], err
}

// errControl means that the response came from swtpm's control channel.
var errControl = errors.New("not a TPM 2.0: the answer of a control channel")

// controlTag is how a response of swtpm's control channel begins. Its first four bytes
// are a result in big endian, and all results are small numbers (swtpm_ioctls(3)).
const controlTag tpm2.TPMST = 0x0000

// checkTag checks the first two bytes of a response, its tag (part 2, 6.9).
func checkTag(rsp []byte) error {
	switch tag := tpm2.TPMST(binary.BigEndian.Uint16(rsp)); tag {
	case tpm2.TPMSTNoSessions, tpm2.TPMSTSessions:
		return nil
	case tpm2.TPMSTRspCommand:
		return &Error{
			Class: ErrSetup, Err: errors.New("the answer comes from a TPM 1.2"),
			Hint: "a TPM 2.0 is needed: some machines can switch theirs in the firmware's setup",
		}
	case controlTag:
		return errControl
	default:
		return noTPM("the answer has the tag %#04x", uint16(tag))
	}
}

// noTPM returns the error for a response that is not a TPM's.
func noTPM(format string, args ...any) error {
	return &Error{
		Class: ErrSetup, Err: fmt.Errorf("not a TPM 2.0: "+format, args...),
		Key: "device", Hint: "check that device names a TPM 2.0",
	}
}

// readUpTo reads into b, which holds n bytes already, until it holds at least want
// bytes. It returns how many bytes b then holds.
func readUpTo(r io.Reader, b []byte, n, want int) (int, error) {
	if n >= want {
		return n, nil
	}
	more, err := io.ReadAtLeast(r, b[n:], want-n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n + more, err
}
