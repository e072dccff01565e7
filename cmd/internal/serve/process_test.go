package serve_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/spiffe/spire-plugin-sdk/private"
	agentv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
)

const kind = "NodeAttestor"

// spire is a plugin's process and a client of it. It starts the plugin as SPIRE does.
type spire struct {
	pid    int
	addr   net.Addr
	conn   grpc.ClientConnInterface
	config configv1.ConfigClient
	log    *syncBuffer
}

// start starts a plugin. The returned function ends it.
func start(path string, env ...string) (*spire, func(), error) {
	s := &spire{log: &syncBuffer{wrote: make(chan struct{}, 1)}}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), env...)
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: kind, MagicCookieValue: kind},
		Plugins:          goplugin.PluginSet{kind: host{}},
		Cmd:              cmd,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Output: s.log, Level: hclog.Warn}),
	})
	protocol, err := client.Client()
	if err != nil {
		client.Kill()
		return s, nil, err
	}
	if _, err := protocol.Dispense(kind); err != nil {
		client.Kill()
		return s, nil, err
	}
	s.pid, s.addr = client.ReattachConfig().Pid, client.ReattachConfig().Addr
	s.conn = protocol.(*goplugin.GRPCClient).Conn
	s.config = configv1.NewConfigClient(s.conn)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := private.Init(ctx, s.conn, nil); err != nil {
		client.Kill()
		return s, nil, err
	}
	return s, client.Kill, nil
}

func (s *spire) configure(hcl string) error {
	_, err := s.config.Configure(context.Background(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: hcl,
	})
	return err
}

// host is SPIRE's side of the plugin, without host services.
type host struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (host) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error { return errors.New("SPIRE's side") }

func (host) GRPCClient(_ context.Context, b *goplugin.GRPCBroker, _ *grpc.ClientConn) (any, error) {
	go b.AcceptAndServe(private.HostServiceProviderID, func(o []grpc.ServerOption) *grpc.Server { return grpc.NewServer(o...) })
	return struct{}{}, nil
}

type syncBuffer struct {
	mu    sync.Mutex
	b     strings.Builder
	wrote chan struct{} // has room for one
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wrote <- struct{}{}:
	default:
	}
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until the plugin has logged a text.
func (s *spire) await(t *testing.T, text string) {
	t.Helper()
	for timeout := time.After(time.Minute); !strings.Contains(s.log.String(), text); {
		select {
		case <-s.log.wrote:
		case <-timeout:
			t.Fatalf("the plugin has not logged %q: %s", text, s.log)
		}
	}
}

// startFor starts a plugin that runs until the test ends.
func startFor(t *testing.T, path string, env ...string) *spire {
	t.Helper()
	s, kill, err := start(path, env...)
	if err != nil {
		t.Fatalf("start %s: %v\n%s", path, err, s.log)
	}
	t.Cleanup(kill)
	return s
}

//nolint:gochecknoglobals // built once for all tests
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "plugins")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.version=v1.2.3", "-o", dir,
		"../../tpm-attestor-server", "../../tpm-attestor-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the plugins: %w\n%s", err, out)
	}
	return dir, nil
})

// built returns the path of a plugin's binary. The environment variable SERVER_BINARY may name
// another server plugin to test.
func built(t *testing.T, name string) string {
	t.Helper()
	if other := os.Getenv("SERVER_BINARY"); other != "" && name == "tpm-attestor-server" {
		return other
	}
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// If these are set, a process of the test binary plays SPIRE and starts a plugin, until the
// test kills it.
const (
	envPlugin = "TEST_PLUGIN" // the plugin's path
	envConfig = "TEST_CONFIG" // the plugin's configuration
)

func TestMain(m *testing.M) {
	if plugin := os.Getenv(envPlugin); plugin != "" {
		beSPIRE(plugin, os.Getenv(envConfig))
	}
	code := m.Run()
	if dir, err := binaries(); err == nil || dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// beSPIRE starts and configures a plugin, prints its process ID and the path of its socket, and
// waits to be killed.
func beSPIRE(plugin, hcl string) {
	s, _, err := start(plugin)
	if err == nil {
		err = s.configure(hcl)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err, s.log)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode([]string{strconv.Itoa(s.pid), s.addr.String()})
	select {}
}

// ended waits for a process, which need not be a child of this one, and reports whether it has
// ended in time.
func ended(t *testing.T, pid int, within time.Duration) bool {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n == 1
		}
	}
}

// If SPIRE is killed, its plugins end and remove their sockets. Otherwise a server plugin that
// stayed behind would overwrite the cache of the next SPIRE's plugin.
func TestPluginEndsWithItsParent(t *testing.T) {
	dir := t.TempDir()
	for name, hcl := range map[string]string{
		"tpm-attestor-server": fmt.Sprintf(`source "hash_dir" "machines" { path = %q }`, dir),
		"tpm-attestor-agent":  "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parent := exec.Command(os.Args[0])
			parent.Env = append(os.Environ(), envPlugin+"="+built(t, name), envConfig+"="+hcl)
			parent.Stderr = os.Stderr
			out, err := parent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			var said []string
			if err := json.NewDecoder(out).Decode(&said); err != nil {
				t.Fatal(err)
			}
			pid, _ := strconv.Atoi(said[0])
			plugin, err := os.FindProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			if ended(t, pid, 0) {
				t.Fatal("the plugin has ended before SPIRE")
			}
			_ = parent.Process.Kill()
			_ = parent.Wait()
			if !ended(t, plugin.Pid, time.Minute) {
				_ = plugin.Kill()
				t.Fatal("the plugin outlives SPIRE")
			}
			if _, err := os.Stat(said[1]); err == nil {
				t.Errorf("the plugin's socket %s is still there", said[1])
			}
		})
	}
}

// systemd sends SIGTERM to SPIRE Agent and to its plugin at the same time. If the plugin died of
// it in the middle of a command, the key that the command makes would stay in a TPM without a
// resource manager; after three such ends, no attestation would have room.
func TestSIGTERMLeavesNothingInTheTPM(t *testing.T) {
	chip := swtpmtest.Start(t, swtpmtest.Options{})
	slow := newSlowTPM(t, chip)
	agent := startFor(t, built(t, "tpm-attestor-agent"))
	if err := agent.configure(fmt.Sprintf("device = %q\nek = \"p256\"", "unix:"+slow.socket)); err != nil {
		t.Fatal(err)
	}
	stream, err := agentv1.NewNodeAttestorClient(agent.conn).AidAttestation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-slow.made
	if err := unix.Kill(agent.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the attestation goes on")
	}
	close(slow.answer)
	if !ended(t, agent.pid, time.Minute) {
		t.Fatal("the plugin has not ended")
	}
	<-slow.done
	c, err := linuxudstpm.Open(chip.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 8}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := rsp.CapabilityData.Data.Handles(); err != nil || len(keys.Handle) > 0 {
		t.Errorf("keys %#x are in the TPM: %v", keys.Handle, err)
	}
}

// slowTPM forwards the commands of one connection to a TPM. It holds back the response to the
// first command that makes a key.
type slowTPM struct {
	socket string
	made   chan struct{} // closed when the key is made
	answer chan struct{} // the test closes it to send the response
	done   chan struct{} // closed after the connection
}

func newSlowTPM(t *testing.T, chip *swtpmtest.TPM) *slowTPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &slowTPM{filepath.Join(dir, "s"), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		defer close(s.done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		tpm, err := net.Dial("unix", chip.Socket)
		if err != nil {
			return
		}
		defer tpm.Close()
		s.forward(conn, tpm)
	}()
	return s
}

func (s *slowTPM) forward(conn, tpm net.Conn) {
	var made sync.Once
	b := make([]byte, 4096)
	for {
		n, err := conn.Read(b)
		if err != nil {
			return
		}
		makesKey := n >= 10 && binary.BigEndian.Uint32(b[6:]) == uint32(tpm2.TPMCCCreatePrimary)
		if _, err := tpm.Write(b[:n]); err != nil {
			return
		}
		if n, err = tpm.Read(b); err != nil {
			return
		}
		if makesKey {
			made.Do(func() {
				close(s.made)
				<-s.answer
			})
		}
		if _, err := conn.Write(b[:n]); err != nil {
			return
		}
	}
}
