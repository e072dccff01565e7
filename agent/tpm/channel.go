package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// tagSize is the size of a response's tag.
	tagSize = 2
	// headerSize is the size of a response's header: tag, size, code.
	headerSize = 10
	// maxResponse is the size of the largest response that is read; TPMs have
	// buffers of 4096 bytes (part 2, TPM_PT_MAX_RESPONSE_SIZE).
	maxResponse = 4096
)

// A channel carries one command at a time to a TPM.
type channel interface {
	// roundTrip sends a command and returns the response. When ctx ends it
	// returns an error, and the channel is of no further use.
	roundTrip(ctx context.Context, command []byte) ([]byte, error)
	Close() error
}

// socketChannel is one connection to a software TPM, by the socket at path.
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

// deviceChannel is an open TPM device. The kernel runs a command within write(2)
// and ends it after its own time limit, minutes at most; nothing interrupts it
// before. So it is left behind when ctx ends, and its file with it.
type deviceChannel struct{ dev io.ReadWriteCloser }

func (c *deviceChannel) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	type answer struct {
		rsp []byte
		err error
	}
	done := make(chan answer, 1)
	go func() {
		rsp, err := exchange(c.dev, command)
		done <- answer{rsp, err}
	}()
	select {
	case a := <-done:
		return a.rsp, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *deviceChannel) Close() error { return c.dev.Close() }

// exchange writes a command and reads its response. Each read asks for all that may
// come: older kernels throw away what one read leaves. The tag is checked as soon as it
// is there, since what is no TPM may send less than a header and then wait.
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
		return nil, fmt.Errorf("%w: its response is %d bytes long", errNoTPM, size)
	}
	n, err = readUpTo(tpm, rsp, n, int(size))
	if err == nil && n != int(size) {
		err = fmt.Errorf("%w: its response has %d bytes instead of %d", errNoTPM, n, size)
	}
	return rsp[:n], err
}

// readUpTo reads until there are want bytes in b, which has n of them already. It
// returns how many there are.
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
