package composer_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	composerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/spire-tpm/spire-tpm-attestor/server/composer"
	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// served is a composer behind the same gRPC boundary as in SPIRE.
type served struct {
	*composer.Plugin
	composer composerv1.CredentialComposerPluginClient
	config   configv1.ConfigServiceClient
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{Plugin: composer.New()}
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:   composerv1.CredentialComposerPluginServer(s.Plugin),
		PluginClient:   &s.composer,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(s.Plugin)},
		ServiceClients: []pluginsdk.ServiceClient{&s.config},
	})
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *served) configure(tb testing.TB, socket string) {
	tb.Helper()
	if err := s.tryConfigure(fmt.Sprintf("socket = %q", socket)); err != nil {
		tb.Fatal(err)
	}
}

func (s *served) tryConfigure(text string) error {
	_, err := s.config.Configure(context.Background(), &configv1.ConfigureRequest{HclConfiguration: text})
	return err
}

func (s *served) agent(id string) error {
	_, err := s.composer.ComposeAgentX509SVID(context.Background(), &composerv1.ComposeAgentX509SVIDRequest{
		SpiffeId: id, PublicKey: []byte("a key"), Attributes: x509(),
	})
	return err
}

func x509() *composerv1.X509SVIDAttributes {
	return &composerv1.X509SVIDAttributes{
		Subject: &composerv1.DistinguishedName{CommonName: "x"}, DnsSans: []string{"a.example.org"},
		ExtraExtensions: []*composerv1.X509Extension{{Oid: "1.2.3", Value: []byte{1}}},
	}
}

const machine = "spiffe://example.org/spire/agent/tpm/0"

// What the composer does not decide about is issued as if the composer were not there, and it
// decides so before it has been configured: SPIRE's server signs its own SVID early.
func TestSaysNothingAboutOthers(t *testing.T) {
	for _, configured := range []bool{false, true} {
		s := serve(t)
		if configured {
			s.configure(t, filepath.Join(t.TempDir(), "tpm", "svid.sock"))
		}
		ctx := t.Context()
		claims, err := structpb.NewStruct(map[string]any{"aud": "x"})
		if err != nil {
			t.Fatal(err)
		}
		want := func(resp proto.Message, err error) {
			t.Helper()
			if err != nil || proto.Size(resp) > 0 {
				t.Errorf("%v, %v", resp, err)
			}
		}
		ca, err := s.composer.ComposeServerX509CA(ctx, &composerv1.ComposeServerX509CARequest{})
		want(ca, err)
		svid, err := s.composer.ComposeServerX509SVID(ctx, &composerv1.ComposeServerX509SVIDRequest{Attributes: x509()})
		want(svid, err)
		for _, path := range []string{"/spire/agent/join_token/x", "/spire/agent/tpm_devid/x", "/spire/agent/tpm2/x", "/w"} {
			id := "spiffe://example.org" + path
			a, err := s.composer.ComposeAgentX509SVID(ctx,
				&composerv1.ComposeAgentX509SVIDRequest{SpiffeId: id, Attributes: x509()})
			want(a, err)
			w, err := s.composer.ComposeWorkloadX509SVID(ctx,
				&composerv1.ComposeWorkloadX509SVIDRequest{SpiffeId: id, Attributes: x509()})
			want(w, err)
			j, err := s.composer.ComposeWorkloadJWTSVID(ctx, &composerv1.ComposeWorkloadJWTSVIDRequest{
				SpiffeId: id, Attributes: &composerv1.JWTSVIDAttributes{Claims: claims},
			})
			want(j, err)
		}
	}
}

// In any trust domain, an agent of the attestor gets no SVID for a key that was not handed over. A workload
// gets none with an agent's ID, and nobody gets one with a malformed ID. The code is never Unimplemented,
// which SPIRE takes for consent.
func TestFailsClosed(t *testing.T) {
	s := serve(t)
	for _, id := range []string{
		machine, "spiffe://example.com/spire/agent/tpm/0", "spiffe://example.org/spire/agent/tpm",
		"", "spiffe://example.org/spire/agent/tpm/", "spiffe://example.org//spire/agent/x", "SPIFFE://example.org/a",
		"spiffe://example.org/spire/agent/join_token/../tpm/0", "https://example.org/a", strings.Repeat("x", 1<<16),
	} {
		_, agent := s.composer.ComposeAgentX509SVID(t.Context(), &composerv1.ComposeAgentX509SVIDRequest{SpiffeId: id})
		_, workload := s.composer.ComposeWorkloadX509SVID(t.Context(), &composerv1.ComposeWorkloadX509SVIDRequest{SpiffeId: id})
		_, jwt := s.composer.ComposeWorkloadJWTSVID(t.Context(), &composerv1.ComposeWorkloadJWTSVIDRequest{SpiffeId: id})
		for _, err := range []error{agent, workload, jwt} {
			if code := status.Code(err); code != codes.PermissionDenied && code != codes.InvalidArgument {
				t.Errorf("%.80q: %v", id, err)
			}
		}
	}
}

// panics is a log that has a bug.
type panics struct{ hclog.Logger }

func (panics) Warn(string, ...any) { panic("a bug") }

// A panic ends one call, and refuses: if the composer ended, SPIRE's server would sign nothing for anybody
// until it is started again.
func TestSurvivesPanics(t *testing.T) {
	s := serve(t)
	s.SetLogger(panics{hclog.NewNullLogger()})
	for range 3 {
		if err := s.agent(machine); status.Code(err) != codes.Internal {
			t.Errorf("a call with a panic: %v", err)
		}
	}
	if err := s.agent("spiffe://example.org/spire/agent/join_token/x"); err != nil {
		t.Error(err)
	}
}

// A key that was handed over at the socket serves, even after a reconfiguration has moved the socket.
func TestHandedOver(t *testing.T) {
	s, dir := serve(t), t.TempDir()
	first, second := filepath.Join(dir, "a", "svid.sock"), filepath.Join(dir, "b", "svid.sock")
	s.configure(t, first)
	handOver := func(socket string) error {
		c := handover.NewClient(socket, handover.Own())
		return c.HandOver(t.Context(), spiffeid.RequireFromString(machine), handover.Any())
	}
	if err := handOver(first); err != nil {
		t.Fatal(err)
	}
	s.configure(t, second)
	if err := s.agent(machine); err != nil {
		t.Error(err)
	}
	if err := handOver(second); err != nil {
		t.Error(err)
	}
	if err := handOver(first); err == nil {
		t.Error("the previous socket is still there")
	}
	if _, err := os.Lstat(first); !os.IsNotExist(err) {
		t.Errorf("the previous socket: %v", err)
	}
	s.configure(t, second) // changes nothing
	if err := s.agent(machine); err != nil {
		t.Error(err)
	}
}

// While keys are handed over, reconfigurations move the socket again and again, as signals may during a storm
// of attestations. A hand-over may fail, and its agent tries again. A key whose hand-over has succeeded serves,
// and the last socket answers.
func TestAnotherSocketMeanwhile(t *testing.T) {
	s, dir := serve(t), t.TempDir()
	var current atomic.Pointer[string]
	use := func(i int) {
		socket := filepath.Join(dir, strconv.Itoa(i%2), "svid.sock")
		s.configure(t, socket)
		current.Store(&socket)
	}
	use(0)
	stop := make(chan struct{})
	var all sync.WaitGroup
	var served atomic.Int64
	for worker := range 4 {
		id := fmt.Sprint(machine, worker)
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c := handover.NewClient(*current.Load(), handover.Own())
				if c.HandOver(t.Context(), spiffeid.RequireFromString(id), handover.Any()) != nil {
					continue
				}
				served.Add(1)
				if err := s.agent(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 50 {
		for before := served.Load(); served.Load() < before+4; {
			runtime.Gosched()
		}
		use(i)
	}
	close(stop)
	all.Wait()
	c := handover.NewClient(*current.Load(), handover.Own())
	if err := c.HandOver(t.Context(), spiffeid.RequireFromString(machine), handover.Any()); err != nil {
		t.Error(err)
	}
}

// If a configuration cannot be put into service, the previous one stays in service.
func TestRefusedConfigurations(t *testing.T) {
	s := serve(t)
	socket := filepath.Join(t.TempDir(), "tpm", "svid.sock")
	s.configure(t, socket)
	for text, want := range map[string]struct {
		code codes.Code
		text string
	}{
		"":                           {codes.InvalidArgument, `socket: is missing: write socket = "/run/spire/tpm/svid.sock"`},
		`socket = "svid.sock"`:       {codes.InvalidArgument, `socket: "svid.sock" is no absolute path`},
		`socket = 5`:                 {codes.InvalidArgument, "socket: is the number 5, but must be a string"},
		`socket = "/dev/null/x/y"`:   {codes.FailedPrecondition, "not a directory"},
		`sockett = "/run/svid.sock"`: {codes.InvalidArgument, "sockett: unknown key; did you mean socket?"},
		`socket = {`:                 {codes.InvalidArgument, "line 1"},
	} {
		err := s.tryConfigure(text)
		if status.Code(err) != want.code || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v, want %s with %q", text, err, want.code, want.text)
		}
	}
	c := handover.NewClient(socket, handover.Own())
	if err := c.HandOver(t.Context(), spiffeid.RequireFromString(machine), handover.Any()); err != nil {
		t.Error(err)
	}
}

// Validate, which spire-server validate calls beside a running server, says what Configure would
// refuse in the text, and touches neither the running server's socket nor anything else.
func TestValidateTouchesNothing(t *testing.T) {
	running, s := serve(t), serve(t)
	socket := filepath.Join(t.TempDir(), "tpm", "svid.sock")
	running.configure(t, socket)
	for text, valid := range map[string]bool{
		fmt.Sprintf("socket = %q", socket):                                          true,
		fmt.Sprintf("socket = %q", filepath.Join(t.TempDir(), "none", "svid.sock")): true,
		`socket = "svid.sock"`:                                                      false,
	} {
		resp, err := s.config.Validate(t.Context(), &configv1.ValidateRequest{HclConfiguration: text})
		if err != nil || resp.GetValid() != valid || valid != (len(resp.GetNotes()) == 0) {
			t.Errorf("%s: %v, %v", text, resp, err)
		}
	}
	files, err := os.ReadDir(filepath.Dir(socket))
	if err != nil || len(files) != 2 {
		t.Errorf("the folder: %v, %v", files, err)
	}
	c := handover.NewClient(socket, handover.Own())
	if err := c.HandOver(t.Context(), spiffeid.RequireFromString(machine), handover.Any()); err != nil {
		t.Error(err)
	}
}

// BenchmarkOthers is what the composer costs SPIRE for each thing that it issues, over gRPC, as
// between SPIRE and its plugins.
func BenchmarkOthers(b *testing.B) {
	listener, err := net.Listen("unix", filepath.Join(b.TempDir(), "plugin.sock"))
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer()
	composerv1.RegisterCredentialComposerServer(server, composer.New())
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := composerv1.NewCredentialComposerClient(conn)
	for b.Loop() {
		_, err := client.ComposeWorkloadX509SVID(b.Context(), &composerv1.ComposeWorkloadX509SVIDRequest{
			SpiffeId: "spiffe://example.org/w", PublicKey: make([]byte, 91), Attributes: x509(),
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
