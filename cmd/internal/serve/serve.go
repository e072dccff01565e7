// Package serve serves a SPIRE plugin over gRPC: what pluginmain.Serve of SPIRE's SDK
// does, with limits of its own, and with an orderly end when SPIRE ends or is killed.
package serve

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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
	// maxMessage is the largest message, in bytes: a configuration of 1 MiB, and what
	// SPIRE sends with it. An attestation's messages have smaller limits of their own.
	maxMessage = 1<<20 + 4<<10
	// window is how many bytes of a stream gRPC takes before anybody reads them: the
	// smallest that it knows.
	window = 64 << 10
	// maxStreams is above everything that strangers can hold open, which the plugins
	// count themselves, so that SPIRE's call to Configure never waits behind them.
	maxStreams = 8192
	// streamWorkers is how many goroutines are kept for streams. Beyond these, each stream
	// has a new one, whose stack has to grow first.
	streamWorkers = 16
)

const (
	// parentInterval is how often the plugin looks whether SPIRE is still there.
	parentInterval = time.Second
	// endTimeout is how long calls that are under way, and then the plugin, may take to
	// end. SPIRE kills a plugin two seconds after it has asked it to end.
	endTimeout = 1500 * time.Millisecond
)

// A Plugin is what is served.
type Plugin struct {
	// Name and Version are of the command.
	Name, Version string
	Server        pluginsdk.PluginServer
	Config        pluginsdk.ServiceServer
	// Closer, if not nil, is closed before the process ends.
	Closer io.Closer
}

// Main serves the plugin to the SPIRE that has started this process, until SPIRE has it
// end or is gone. It returns the exit code.
func Main(p Plugin, stderr io.Writer) int {
	parent := os.Getppid()
	if os.Getenv(p.Server.Type()) != p.Server.Type() {
		fmt.Fprintf(stderr, "%s is a SPIRE plugin, the node attestor \"tpm\", and SPIRE starts it. "+
			"For what it does by hand, run %[1]s -help\n", p.Name)
		return 2
	}
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: stderr, JSONFormat: true})
	if err := CheckFIPS(); err != nil {
		log.Error(err.Error(), "plugin", p.Name, "version", p.Version)
		return 1
	}
	// A line to the log of a SPIRE that is gone must not kill the plugin while it writes
	// a file: the parent's end is seen below.
	signal.Ignore(syscall.SIGPIPE)
	log.Info("Plugin started", "plugin", p.Name, "version", p.Version)
	s := &server{log: log, plugin: p}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		if waitForOrphan(ctx, parent, os.Getppid) {
			s.stop()
		}
	})
	s.serve()
	cancel()
	watching.Wait()
	return s.end()
}

// CheckFIPS says why the plugin cannot run if Go's cryptography is restricted to what
// FIPS 140-3 approves: a TPM's credentials are encrypted with AES in CFB mode.
func CheckFIPS() error {
	if !fips140.Enforced() {
		return nil
	}
	return errors.New("GODEBUG=fips140=only forbids AES-CFB, by which every TPM 2.0 takes a credential " +
		"(TPM 2.0 library, part 1, 24.4): set GODEBUG=fips140=on instead")
}

// waitForOrphan returns true once the parent of this process is not the one it was, or
// false when ctx is done.
func waitForOrphan(ctx context.Context, parent int, getppid func() int) bool {
	ticker := time.NewTicker(parentInterval)
	defer ticker.Stop()
	for getppid() == parent {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	return true
}

// server is a plugin that is served.
type server struct {
	log    hclog.Logger
	plugin Plugin

	mu      sync.Mutex
	stopped bool // before there was a gRPC server, or since
	ending  bool // no further call is taken
	grpc    *grpc.Server
	calls   sync.WaitGroup // that are under way
}

// serve serves until the gRPC server is stopped: by stop, or by SPIRE.
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

// newGRPC makes the gRPC server.
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

// count counts the calls that are under way.
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

// stop has serve return.
func (s *server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.grpc != nil {
		s.grpc.Stop()
	}
}

// end waits until what was under way has ended, keys in a TPM have been flushed and
// caches are closed. It returns the exit code.
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

// services are the services of a plugin as go-plugin registers them.
type services struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

// GRPCServer implements goplugin.GRPCPlugin. Package private has SPIRE's own Init
// service, by which SPIRE hands over its log and its host services; the SDK has no other
// way to it but pluginmain.Serve, which takes no limits.
func (s *services) GRPCServer(broker *goplugin.GRPCBroker, registrar *grpc.Server) error {
	private.Register(registrar, []pluginsdk.ServiceServer{s.server.plugin.Server, s.server.plugin.Config},
		s.server.log, &host{broker: broker})
	return nil
}

// GRPCClient implements goplugin.GRPCPlugin.
func (*services) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("this is the plugin's side")
}

// host dials SPIRE.
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
