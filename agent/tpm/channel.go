package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
)

const (
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

// socketChannel is one connection to a software TPM. There is one for an
// attestation: commands on a single connection cost it no accept each.
type socketChannel struct{ net.Conn }

func (c *socketChannel) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	rsp, err := c.exchange(command)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return rsp, err
}

func (c *socketChannel) exchange(command []byte) ([]byte, error) {
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	rsp := make([]byte, headerSize, maxResponse)
	if _, err := io.ReadFull(c, rsp); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(rsp[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("its response is %d bytes long: not a TPM 2.0", size)
	}
	rsp = rsp[:size]
	_, err := io.ReadFull(c, rsp[headerSize:])
	return rsp, err
}

// deviceChannel is an open TPM device. The kernel runs a command within write(2)
// and ends it after its own time limit, minutes at most; nothing interrupts it
// before. So it is left behind when ctx ends, and its file with it.
type deviceChannel struct{ dev transport.TPMCloser }

func (c *deviceChannel) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	type answer struct {
		rsp []byte
		err error
	}
	done := make(chan answer, 1)
	go func() {
		rsp, err := c.dev.Send(command)
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
