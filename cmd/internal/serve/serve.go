// Package serve serves a SPIRE plugin over gRPC. It replaces pluginmain.Serve of SPIRE's SDK: it sets limits, and
// shuts the plugin down properly when SPIRE ends or is killed.
package serve

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/private"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The limits of the gRPC server.
const (
	// maxMessage is the size of the largest message, in bytes. It has room for a
	// configuration of 1 MiB and what SPIRE sends with it. The messages of an
	// attestation have smaller limits, which the plugins check.
	maxMessage = 1<<20 + 4<<10
	// window is how many bytes of a stream gRPC accepts before the plugin reads
	// them. It is the smallest window that gRPC supports.
	window = 64 << 10
	// maxStreams is more than the number of streams that the plugins let strangers hold open, so SPIRE's call to
	// Configure never waits for strangers.
	maxStreams = 8192
	// streamWorkers is how many goroutines are kept for streams. A stream beyond these gets a new goroutine, whose
	// stack has to grow first.
	streamWorkers = 16
)

const (
	// parentInterval is how often the plugin checks that SPIRE is running.
	parentInterval = time.Second
	// endTimeout limits the end of all calls and the Closer together. SPIRE kills a plugin two seconds after it has
	// asked the plugin to end.
	endTimeout = 1500 * time.Millisecond
)

// A Plugin is a plugin to serve.
type Plugin struct {
	// Name and Version are those of the command, for the log.
	Name, Version string
	Server        pluginsdk.PluginServer
	Config        pluginsdk.ServiceServer
	// Closer is closed after the last call has ended and before the process ends. If
	// that takes too long, the process ends without it.
	Closer io.Closer
}

// Main serves one of the plugins to SPIRE, which has started this process: the plugin of the type that SPIRE asks
// for. SPIRE starts a process for each plugin, even if one command has several. The plugins must have the same Name
// and Version, and different types. Main returns the exit code after SPIRE has asked the plugin to end, after SPIRE
// has ended, or after this process has received SIGTERM, which systemd sends to all processes of a service.
func Main(stderr io.Writer, plugins ...Plugin) int {
	parent := os.Getppid()
	i := slices.IndexFunc(plugins, wanted)
	if i < 0 {
		fmt.Fprintf(stderr, "%s is a SPIRE plugin, and SPIRE starts it. "+
			"For what it does by hand, run %[1]s -help\n", plugins[0].Name)
		return 2
	}
	p := plugins[i]
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: stderr, JSONFormat: true})
	if err := checkFIPS(); err != nil {
		log.Error(err.Error(), "plugin", p.Name, "version", p.Version)
		return 1
	}
	// If SPIRE has ended, writing a log line must not kill the plugin, which may be writing a file. waitForEnd
	// notices that SPIRE has ended.
	signal.Ignore(syscall.SIGPIPE)
	log.Info("Plugin started", "plugin", p.Name, "version", p.Version)
	s := &server{log: log, plugin: p}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	var watching sync.WaitGroup
	watching.Go(func() {
		waitForEnd(ctx, parent)
		s.stop()
	})
	s.serve()
	cancel()
	watching.Wait()
	return s.end()
}

// wanted reports whether SPIRE has started this process for a plugin of p's type. SPIRE names the
// type in an environment variable (go-plugin's magic cookie).
func wanted(p Plugin) bool { return os.Getenv(p.Server.Type()) == p.Server.Type() }

// checkFIPS returns an error if Go's cryptography is restricted to what FIPS 140-3
// approves. The plugin cannot run then: a TPM's credentials are encrypted with AES in CFB
// mode.
func checkFIPS() error {
	if !fips140.Enforced() {
		return nil
	}
	return errors.New("GODEBUG=fips140=only forbids AES-CFB, by which every TPM 2.0 takes a credential " +
		"(TPM 2.0 library, part 1, 24.4): set GODEBUG=fips140=on instead")
}

// waitForEnd returns when ctx ends or when the parent process has ended.
func waitForEnd(ctx context.Context, parent int) {
	ticker := time.NewTicker(parentInterval)
	defer ticker.Stop()
	for os.Getppid() == parent {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// server serves a plugin.
type server struct {
	log    hclog.Logger
	plugin Plugin

	mu      sync.Mutex
	stopped bool         // stop has been called
	ending  bool         // further calls are refused
	grpc    *grpc.Server // nil until go-plugin asks for it
	calls   sync.WaitGroup
}

// serve serves the plugin until stop is called or SPIRE stops the gRPC server.
func (s *server) serve() {
	kind := s.plugin.Server.Type()
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: goplugin.HandshakeConfig{
			ProtocolVersion: 1, MagicCookieKey: kind, MagicCookieValue: kind,
		},
		Plugins:    goplugin.PluginSet{kind: &services{server: s}},
		Logger:     s.log,
		GRPCServer: s.newGRPC,
	})
}

// newGRPC makes the gRPC server. If stop was called before, the server is stopped at once.
func (s *server) newGRPC(opts []grpc.ServerOption) *grpc.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grpc = grpc.NewServer(append(opts,
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(window),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.StreamInterceptor(s.count),
	)...)
	if s.stopped {
		s.grpc.Stop()
	}
	return s.grpc
}

// count is an interceptor that counts the calls under way. After end has begun, it refuses
// further calls.
func (s *server) count(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		return status.Error(codes.Unavailable, "the plugin is shutting down")
	}
	s.calls.Add(1)
	s.mu.Unlock()
	defer s.calls.Done()
	return handle(srv, stream)
}

// stop makes serve return. It cancels the contexts of all calls.
func (s *server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.grpc != nil {
		s.grpc.Stop()
	}
}

// end waits at most endTimeout until all calls have ended and the Closer is closed. It returns the exit code.
func (s *server) end() int {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.calls.Wait()
		if s.plugin.Closer == nil {
			return
		}
		if err := s.plugin.Closer.Close(); err != nil {
			s.log.Warn("Plugin closed with an error", "error", err)
		}
	}()
	select {
	case <-ended:
		return 0
	case <-time.After(endTimeout):
		return 1
	}
}

// services implements goplugin.GRPCPlugin for the services of the plugin.
type services struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

// GRPCServer implements goplugin.GRPCPlugin. SPIRE passes its log and its host services through the Init service,
// which is in the SDK's package private. The only other way to that service is pluginmain.Serve, which has no
// options for limits.
func (s *services) GRPCServer(broker *goplugin.GRPCBroker, registrar *grpc.Server) error {
	private.Register(registrar, []pluginsdk.ServiceServer{s.server.plugin.Server, s.server.plugin.Config},
		s.server.log, &host{broker: broker})
	return nil
}

// GRPCClient implements goplugin.GRPCPlugin.
func (*services) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the plugin's side")
}

// host connects to SPIRE's host services, once.
type host struct {
	broker *goplugin.GRPCBroker
	once   sync.Once
	conn   *grpc.ClientConn
	err    error
}

// DialHost implements private.HostDialer.
func (h *host) DialHost(context.Context) (grpc.ClientConnInterface, error) {
	h.once.Do(func() { h.conn, h.err = h.broker.Dial(private.HostServiceProviderID) })
	if h.err != nil {
		return nil, h.err
	}
	return h.conn, nil
}
