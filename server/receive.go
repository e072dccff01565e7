package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

const (
	// envelope is how many bytes protobuf adds to a payload or a response: a tag and a
	// length.
	envelope = 16
	// maxArriving is how many bytes of messages may be arriving, or have arrived and wait
	// for the verifier, at once. An honest payload has 2 to 10 KiB and takes a millisecond.
	maxArriving = 2 << 20
	// arrivalTimeout is how long a message may take from its first bytes to its last:
	// SPIRE sends nothing before it has the whole message.
	arrivalTimeout = 5 * time.Second
)

var (
	errTooLong = errors.New("the message is too long")
	errBusy    = errors.New("too many messages are arriving at once")
)

// framedStream is the part of a gRPC stream below messages, which gRPC's own RecvMsg reads
// from.
type framedStream interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// incoming is a message that is being received, in a goroutine of its own: gRPC's receiver
// knows no deadline of ours, and returns at the latest when Attest has returned.
type incoming struct {
	plugin *Plugin
	stream nodeattestorv1.NodeAttestor_AttestServer
	limit  int           // on what the message has in it, in bytes
	begun  chan struct{} // closed when its size is known
	done   chan struct{} // closed when the message has arrived, or receiving it has failed

	held atomic.Int64 // its share of maxArriving

	// Valid from when done is closed until release.
	req *nodeattestorv1.AttestRequest
	err error
}

// release gives back the message and its share of maxArriving. It may be called more than once.
func (m *incoming) release() {
	m.req = nil
	m.plugin.arriving.Add(-m.held.Swap(0))
}

// receive receives the next message, which may have at most limit bytes in it. It waits
// answerTimeout for the message to begin, and arrivalTimeout for the rest. The caller releases
// the message as soon as it has read it.
func (a *attestation) receive(ctx context.Context, limit int) (*incoming, *failure) {
	m := &incoming{
		plugin: a.plugin, stream: a.stream, limit: limit,
		begun: make(chan struct{}), done: make(chan struct{}),
	}
	go m.run(ctx)
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	for waiting := m.begun; ; {
		select {
		case <-waiting:
			waiting = nil
			timer.Reset(arrivalTimeout)
			continue
		case <-m.done:
			if failed := m.failure(ctx); failed != nil {
				m.release()
				return nil, failed
			}
			return m, nil
		case <-ctx.Done():
			m.abandon()
			return nil, left(ctx, ctx.Err())
		case <-timer.C:
			m.abandon()
			return nil, m.late(waiting == nil)
		}
	}
}

// abandon releases the message when it has arrived.
func (m *incoming) abandon() {
	go func() {
		<-m.done
		m.release()
	}()
}

// late returns the failure if the message has not arrived in time.
func (m *incoming) late(begun bool) *failure {
	f := &failure{outcome: outcomeNoAnswer, code: codes.DeadlineExceeded}
	switch {
	case begun:
		f.told = "the message did not arrive within " + arrivalTimeout.String() + " of its beginning"
	case m.limit == attestor.MaxPayloadSize:
		f.told = "the payload did not come within " + answerTimeout.String()
	default:
		f.told = "the challenge was not answered within " + answerTimeout.String()
	}
	f.why = f.told
	return f
}

// failure returns why the message has not arrived.
func (m *incoming) failure(ctx context.Context) *failure {
	switch {
	case m.err == nil:
		return nil
	case errors.Is(m.err, errTooLong):
		return malformed(m.err.Error())
	case errors.Is(m.err, errBusy):
		return tooMany(m.err.Error())
	}
	return left(ctx, m.err)
}

// run receives the message.
func (m *incoming) run(ctx context.Context) {
	defer close(m.done)
	defer m.plugin.guard(ctx, "Recv", &m.err)
	framed, ok := grpc.ServerTransportStreamFromContext(ctx).(framedStream)
	if !ok { // the stream is not gRPC's own
		m.req, m.err = m.stream.Recv()
		return
	}
	m.req, m.err = m.read(framed)
}

// read reads a message like RecvMsg, but checks its size first. gRPC has one limit for all
// methods, which is as large as Configure needs, and would take that many bytes from any
// stranger before it hands over the first.
func (m *incoming) read(stream framedStream) (*nodeattestorv1.AttestRequest, error) {
	var header [5]byte // whether the message is compressed, and its size
	if err := stream.ReadMessageHeader(header[:]); err != nil {
		return nil, err
	}
	size := int64(binary.BigEndian.Uint32(header[1:]))
	switch {
	case size > int64(m.limit+envelope):
		return nil, fmt.Errorf("%w: %d bytes instead of at most %d", errTooLong, size, m.limit)
	case header[0] != 0:
		return nil, errors.New("the message is compressed, which SPIRE does not do")
	}
	m.held.Store(size)
	if m.plugin.arriving.Add(size) > maxArriving {
		return nil, errBusy
	}
	close(m.begun)
	data, err := stream.Read(int(size))
	if err != nil {
		return nil, err
	}
	defer data.Free()
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	req := &nodeattestorv1.AttestRequest{}
	if err := proto.Unmarshal(whole.ReadOnlyData(), req); err != nil {
		return nil, fmt.Errorf("decode the message: %w", err)
	}
	return req, nil
}
