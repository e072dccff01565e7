package server_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// gRPC's limit is as large as a configuration needs. A message of an agent that exceeds its own
// limit is refused by the size in front of it, before a byte of it is kept: a thousand agents
// could otherwise send a gigabyte.
func TestMessagesAreRefusedByTheirSize(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p := serve(t)
	p.configure(t, oneHashDir(hashDir(t, tpm)))
	_, err := p.attest(t, make([]byte, attestor.MaxPayloadSize+100), nil)
	wantStatus(t, err, codes.InvalidArgument, "the message is too long: ")
	_, err = p.attest(t, tpm.Payload(t), func([]byte) []byte { return make([]byte, attestor.MaxResponseSize+100) })
	wantStatus(t, err, codes.InvalidArgument, "the message is too long: ")
	// As long as is allowed, which the verifier judges.
	_, err = p.attest(t, make([]byte, attestor.MaxPayloadSize), nil)
	wantStatus(t, err, codes.InvalidArgument, "payload: ")
	if _, err = p.attest(t, tpm.Payload(t), func(c []byte) []byte { return tpm.Answer(t, c) }); err != nil {
		t.Error(err)
	}
	if n := p.Arriving(); n != 0 {
		t.Errorf("%d bytes are counted as arriving", n)
	}
}

// A stream that is opened and sends nothing ends by itself, and is not counted with the
// machines that attest. So does a stream on which half a message arrives. If gRPC's transport
// ever hides what this takes, nothing is received at all.
func TestStreamsThatStop(t *testing.T) {
	for name, test := range map[string]struct {
		sent  int // bytes that arrive
		after time.Duration
		want  string
	}{
		"nothing":        {0, time.Minute, "the payload did not come within 1m0s"},
		"half a message": {30 << 10, 5 * time.Second, "the message did not arrive within 5s of its beginning"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := server.New()
				p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
				stream, err := dial(t, p, test.sent).Attest(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				if test.sent > 0 {
					go func() { _ = stream.Send(payloadMessage(make([]byte, 2*test.sent))) }()
				}
				synctest.Wait()
				if n := p.UnderWay(); n != 0 {
					t.Errorf("%d attestations are under way", n)
				}
				_, err = stream.Recv()
				wantStatus(t, err, codes.DeadlineExceeded, test.want)
				if took := time.Since(begun); took != test.after {
					t.Errorf("took %v, want %v", took, test.after)
				}
				synctest.Wait()
				if n := p.Arriving(); n != 0 {
					t.Errorf("%d bytes are counted as arriving", n)
				}
			})
		})
	}
}

// dial serves a plugin by gRPC in memory and returns a client. If most is not 0, no more than
// this many bytes from the client arrive.
func dial(t *testing.T, p *server.Plugin, most int) nodeattestorv1.NodeAttestorClient {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	nodeattestorv1.RegisterNodeAttestorServer(s, p)
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(listener) }) // until the end of the test
	conn, err := grpc.NewClient("passthrough:memory", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := listener.DialContext(ctx)
			if most > 0 {
				return &stopping{Conn: c, left: most}, err
			}
			return c, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		s.Stop()
		serving.Wait()
	})
	return nodeattestorv1.NewNodeAttestorClient(conn)
}

// stopping is a connection on which only the first bytes that are written arrive.
type stopping struct {
	net.Conn
	left int
}

func (s *stopping) Write(b []byte) (int, error) {
	n := min(len(b), s.left)
	s.left -= n
	if _, err := s.Conn.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(b), nil
}
