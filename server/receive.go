package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

const (
	// envelope is how many bytes protobuf adds to a payload or a response: a tag and a
	// length.
	envelope = 16
	// maxArriving limits the bytes of payloads that are arriving, or have arrived and wait for the verifier. An
	// honest payload has 2 to 10 KiB and takes a millisecond. maxAnswering is the limit for responses: a separate
	// one, so that strangers' payloads cannot keep responses out. A response with an event log has some 70 KiB.
	maxArriving, maxAnswering = 2 << 20, 8 << 20
	// arrivalTimeout is how long a message may take from its first bytes to its last:
	// SPIRE sends nothing before it has the whole message.
	arrivalTimeout = 5 * time.Second
)

// transport is the part of a gRPC stream that gRPC's own RecvMsg reads from, and through which gRPC ends the
// stream.
type transport interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
	WriteStatus(*status.Status) error
}

// incoming is a message that is arriving, or has arrived.
type incoming struct {
	of   *budget
	held int64                         // its share of the budget
	req  *nodeattestorv1.AttestRequest // nil until it has arrived, and after release
}

// release gives back the message and its share of the budget. It may be called more than once.
func (m *incoming) release() {
	m.of.give(m.held)
	m.req, m.held = nil, 0
}

// receive receives the next message, which may have at most limit bytes in it, and counts them
// against a budget. It waits answerTimeout for the message to begin, and arrivalTimeout for the
// rest. The caller releases the message as soon as it has read it.
func receive(ctx context.Context, limit int, of *budget) (*incoming, *failure) {
	t, ok := grpc.ServerTransportStreamFromContext(ctx).(transport)
	if !ok {
		return nil, &failure{
			outcome: outcomeInternal, code: codes.Internal,
			told: "the server cannot receive messages", why: "the stream is not one of gRPC's own transport",
		}
	}
	m := &incoming{of: of}
	if failed := m.read(ctx, t, limit); failed != nil {
		m.release()
		return nil, failed
	}
	return m, nil
}

// read reads a message like RecvMsg, but checks its size first. gRPC has one limit for all
// methods, which is as large as Configure needs, and would take that many bytes from any
// stranger before it hands over the first.
func (m *incoming) read(ctx context.Context, t transport, limit int) *failure {
	var header [5]byte // whether the message is compressed, and its size
	failed := within(ctx, t, answerTimeout, silent(limit), func() error { return t.ReadMessageHeader(header[:]) })
	if failed != nil {
		return failed
	}
	size := int64(binary.BigEndian.Uint32(header[1:]))
	switch {
	case size > int64(limit+envelope):
		return malformed(fmt.Sprintf("the message is too long: %d bytes instead of at most %d", size, limit))
	case header[0] != 0:
		return left(ctx, errors.New("the message is compressed, which SPIRE does not do"))
	}
	if !m.of.take(size) {
		return tooMany(reasonMessages, "too many messages are arriving at once")
	}
	m.held = size
	slow := "the message did not arrive within " + arrivalTimeout.String() + " of its beginning"
	return within(ctx, t, arrivalTimeout, slow, func() error { return m.readBody(t, int(size)) })
}

func (m *incoming) readBody(t transport, size int) error {
	data, err := t.Read(size)
	if err != nil {
		return err
	}
	defer data.Free()
	whole := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer whole.Free()
	req := &nodeattestorv1.AttestRequest{}
	if err := proto.Unmarshal(whole.ReadOnlyData(), req); err != nil {
		return fmt.Errorf("decode the message: %w", err)
	}
	m.req = req
	return nil
}

// silent returns the message for an agent that does not send anything in time.
func silent(limit int) string {
	if limit == attestor.MaxPayloadSize {
		return "the payload did not come within " + answerTimeout.String()
	}
	return "the challenge was not answered within " + answerTimeout.String()
}

// within calls read, and ends the stream if read takes longer than limit. There is no other way to make read
// return: gRPC's receiver takes no deadline.
func within(ctx context.Context, t transport, limit time.Duration, late string, read func() error) *failure {
	timer := time.AfterFunc(limit, func() {
		_ = t.WriteStatus(status.New(codes.DeadlineExceeded, late)) // the stream may have ended
	})
	err := read()
	switch {
	case !timer.Stop():
		return &failure{outcome: outcomeNoAnswer, code: codes.DeadlineExceeded, told: late, why: late}
	case err != nil:
		return left(ctx, err)
	}
	return nil
}
