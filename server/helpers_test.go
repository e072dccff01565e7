package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
)

// agentAddress is handed over as SPIRE does.
const (
	addressHeader = "X-Forwarded-Client-IP"
	agentAddress  = "192.0.2.7"
)

// The exceptions belong to the other side of the boundary: plugintest keeps a
// connection, two pipes and a watch on this process for each plugin it has served.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin/internal/cmdrunner.pidWait"),
		goleak.IgnoreAnyFunction("github.com/hashicorp/go-plugin.copyChan"),
		goleak.IgnoreAnyFunction("google.golang.org/grpc.(*addrConn).connect"),
		goleak.IgnoreAnyFunction("google.golang.org/grpc/internal/grpcsync.(*CallbackSerializer).run"))
}

// plugin is a plugin behind the same gRPC boundary as in SPIRE.
type plugin struct {
	*server.Plugin
	attestor nodeattestorv1.NodeAttestorPluginClient
	config   configv1.ConfigServiceClient
	log      *logBuffer
}

// serve serves a plugin until the test ends.
func serve(t *testing.T, hostServices ...pluginsdk.ServiceServer) *plugin {
	t.Helper()
	p := &plugin{Plugin: server.New(), log: &logBuffer{}}
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:       nodeattestorv1.NodeAttestorPluginServer(p.Plugin),
		PluginClient:       &p.attestor,
		ServiceServers:     []pluginsdk.ServiceServer{configv1.ConfigServiceServer(p.Plugin)},
		ServiceClients:     []pluginsdk.ServiceClient{&p.config},
		HostServiceServers: hostServices,
		Logger:             p.log.logger(),
	})
	return p
}

// configure configures the plugin, which must accept it.
func (p *plugin) configure(tb testing.TB, text string) {
	tb.Helper()
	if err := p.tryConfigure(text); err != nil {
		tb.Fatalf("Configure: %v\n%s", err, text)
	}
}

func (p *plugin) tryConfigure(text string) error {
	_, err := p.config.Configure(context.Background(), configureRequest(text))
	return err
}

func configureRequest(text string) *configv1.ConfigureRequest {
	return &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"},
		HclConfiguration:  text,
	}
}

// agent is the agent's half of one attestation: it returns the response to a
// challenge.
type agent func(challenge []byte) []byte

// attest sends a payload and, if it is challenged, the answer.
func (p *plugin) attest(tb testing.TB, payload []byte, answer agent) (*nodeattestorv1.AgentAttributes, error) {
	tb.Helper()
	ctx := metadata.AppendToOutgoingContext(context.Background(), addressHeader, agentAddress)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.attestor.Attest(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	// If Send returns io.EOF, the plugin has ended the stream, and Recv returns why.
	if err := stream.Send(payloadMessage(payload)); err != nil && !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if a := resp.GetAgentAttributes(); a != nil {
			return a, nil
		}
		err = stream.Send(responseMessage(answer(resp.GetChallenge())))
		if err != nil && !errors.Is(err, io.EOF) {
			tb.Fatal(err)
		}
	}
}

func payloadMessage(b []byte) *nodeattestorv1.AttestRequest {
	return &nodeattestorv1.AttestRequest{Request: &nodeattestorv1.AttestRequest_Payload{Payload: b}}
}

func responseMessage(b []byte) *nodeattestorv1.AttestRequest {
	return &nodeattestorv1.AttestRequest{Request: &nodeattestorv1.AttestRequest_ChallengeResponse{ChallengeResponse: b}}
}

// attestTPM attests by an honest agent.
func (p *plugin) attestTPM(tb testing.TB, tpm *attestortest.TPM) (*nodeattestorv1.AgentAttributes, error) {
	tb.Helper()
	return p.attest(tb, tpm.Payload(tb), func(c []byte) []byte { return tpm.Answer(tb, c) })
}

// wantStatus checks the code and the message that an agent gets.
func wantStatus(tb testing.TB, err error, code codes.Code, message string) {
	tb.Helper()
	s := status.Convert(err)
	if s.Code() != code || !strings.Contains(s.Message(), message) {
		tb.Errorf("status %s %q, want %s with %q", s.Code(), s.Message(), code, message)
	}
}

// hashDir returns a folder that lists TPMs.
func hashDir(tb testing.TB, tpms ...*attestortest.TPM) string {
	tb.Helper()
	dir := tb.TempDir()
	for _, tpm := range tpms {
		list(tb, dir, tpm.EKHash(), "")
	}
	return dir
}

// list puts a file into a folder.
func list(tb testing.TB, dir, name, content string) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
}

// logBuffer collects what is logged.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) logger() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: b, JSONFormat: true})
}

// Write implements io.Writer.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// has reports whether there is a line with this text.
func (b *logBuffer) has(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.buf.Bytes(), []byte(text))
}

// await waits for a line with this text.
func (b *logBuffer) await(tb testing.TB, text string) {
	tb.Helper()
	for late := time.After(time.Minute); !b.has(text); runtime.Gosched() {
		select {
		case <-late:
			tb.Fatalf("no line %q in the log", text)
		default:
		}
	}
}

// find returns the last line with this message.
func (b *logBuffer) find(tb testing.TB, message string) map[string]any {
	tb.Helper()
	b.mu.Lock()
	lines := strings.Split(strings.TrimSpace(b.buf.String()), "\n")
	b.mu.Unlock()
	for _, line := range slices.Backward(lines) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			tb.Fatalf("%v: %s", err, line)
		}
		if m, _ := entry["@message"].(string); strings.HasPrefix(m, message) {
			return entry
		}
	}
	tb.Fatalf("no line %q in the log:\n%s", message, strings.Join(lines, "\n"))
	return nil
}

// memoryStream is a stream without gRPC, for tests with a clock of their own and
// for benchmarks.
type memoryStream struct {
	grpc.ServerStream
	ctx context.Context
	// recv is called for each message that the server waits for.
	recv func(n int) (*nodeattestorv1.AttestRequest, error)
	// sent, unless nil, is called at the end of each Send.
	sent func()

	open       sync.Once
	whole      context.Context // ctx, until the server ends the stream
	end        context.CancelFunc
	received   int
	challenge  []byte
	attributes *nodeattestorv1.AgentAttributes
}

// memoryTransport is what gRPC's transport is to its streams.
type memoryTransport struct {
	grpc.ServerTransportStream
	stream  *memoryStream
	message []byte
}

func (t *memoryTransport) ReadMessageHeader(header []byte) error {
	t.stream.received++
	req, err := t.stream.recv(t.stream.received - 1)
	if err != nil {
		return err
	}
	t.message, err = proto.Marshal(req)
	binary.BigEndian.PutUint32(header[1:], uint32(len(t.message)))
	return err
}

func (t *memoryTransport) Read(n int) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(t.message[:n])}, nil
}

func (t *memoryTransport) WriteStatus(*status.Status) error {
	t.stream.end()
	return nil
}

// honest returns a stream by which a TPM attests.
func honest(ctx context.Context, tb testing.TB, tpm *attestortest.TPM) *memoryStream {
	tb.Helper()
	payload := tpm.Payload(tb)
	s := &memoryStream{ctx: ctx}
	s.recv = func(n int) (*nodeattestorv1.AttestRequest, error) {
		if n == 0 {
			return payloadMessage(payload), nil
		}
		return responseMessage(tpm.Answer(tb, s.challenge)), nil
	}
	return s
}

func (s *memoryStream) Context() context.Context {
	s.open.Do(func() {
		s.whole, s.end = context.WithCancel(s.ctx)
		s.whole = grpc.NewContextWithServerTransportStream(s.whole, &memoryTransport{stream: s})
	})
	return s.whole
}

func (s *memoryStream) Recv() (*nodeattestorv1.AttestRequest, error) {
	return nil, errors.New("the server reads by the transport")
}

func (s *memoryStream) Send(resp *nodeattestorv1.AttestResponse) error {
	s.challenge, s.attributes = resp.GetChallenge(), resp.GetAgentAttributes()
	if s.sent != nil {
		defer s.sent()
	}
	return s.ctx.Err()
}
