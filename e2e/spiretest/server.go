package spiretest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// ServerConfig says what server is wanted.
type ServerConfig struct {
	// Dir is the server's own folder. It is made.
	Dir string
	// TrustDomain is "example.org" where it is empty.
	TrustDomain string
	// PluginData is the plugin's configuration, in HCL, or a JSON object
	// where JSON is set.
	PluginData string
	// JSON makes the whole configuration JSON, as Helm charts write it.
	JSON bool
	// DataFile puts PluginData into a file of its own, which the server reads
	// again at SIGUSR1: see Server.Reconfigure.
	DataFile bool
	// Whole is a whole configuration in HCL, as an operator has it, in place of
	// one that is made. Addresses, data_dir and log level are this package's all
	// the same; of the fields below it only Detached counts.
	Whole string
	// AgentTTL is how long an agent's SVID lives; SPIRE's default where zero.
	AgentTTL time.Duration
	// Metrics lets the server show its metrics to Prometheus: see
	// Server.MetricsURL. It is for configurations that are made, in HCL.
	Metrics bool
	// LogLevel is "DEBUG" if it is empty. It is for configurations that are made,
	// in HCL, and so is MorePlugins: blocks of other plugins.
	LogLevel, MorePlugins string
	// Detached lets the server outlive the caller.
	Detached bool
}

// A Server is a running SPIRE server.
type Server struct {
	*Process
	// Address is the host and port of its API for agents.
	Address string
	// Socket is the path of its API for administration.
	Socket string
	// ConfigPath and BundlePath are files: its configuration, and the
	// certificates by which agents know it.
	ConfigPath, BundlePath string
	// DataPath is the file with the plugin's configuration, where there is one.
	DataPath string
	// MetricsURL is where Prometheus would scrape it, where it shows metrics.
	MetricsURL string
	// TrustDomain is its trust domain.
	TrustDomain string

	dir      string
	flags    []string // besides -config
	programs Programs
	api      *grpc.ClientConn
}

// StartServer starts a server and returns when it answers.
func (p Programs) StartServer(ctx context.Context, c ServerConfig) (*Server, error) {
	if err := makeDir(c.Dir); err != nil {
		return nil, err
	}
	// A port that is free now can be taken when the server binds it.
	const attempts = 3
	var err error
	for range attempts {
		var s *Server
		if s, err = p.startServer(ctx, c); err == nil {
			return s, nil
		}
		if !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	return nil, err
}

func (p Programs) startServer(ctx context.Context, c ServerConfig) (*Server, error) {
	s, err := p.WriteServerConfig(c)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.Server, append([]string{"run", "-config", s.ConfigPath}, s.flags...)...)
	cmd.Env = environ(c.Dir)
	s.Process, err = Start("spire-server", cmd, filepath.Join(c.Dir, "server.log"), c.Detached)
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// WriteServerConfig writes the configuration of a server and starts nothing.
func (p Programs) WriteServerConfig(c ServerConfig) (*Server, error) {
	if err := makeDir(c.Dir); err != nil {
		return nil, err
	}
	c.TrustDomain = cmp.Or(c.TrustDomain, "example.org")
	c.LogLevel = cmp.Or(c.LogLevel, "DEBUG")
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	s := &Server{
		Address:     fmt.Sprintf("127.0.0.1:%d", port),
		Socket:      filepath.Join(c.Dir, "server.sock"),
		ConfigPath:  filepath.Join(c.Dir, "server.conf"),
		BundlePath:  filepath.Join(c.Dir, "bundle.pem"),
		TrustDomain: c.TrustDomain,
		dir:         c.Dir,
		programs:    p,
	}
	data := serverConfig{
		Dir: c.Dir, TrustDomain: c.TrustDomain, Socket: s.Socket, Port: port,
		AgentTTL: c.AgentTTL, PluginCmd: p.ServerPlugin, PluginData: c.PluginData,
		LogLevel: c.LogLevel, MorePlugins: c.MorePlugins,
	}
	if c.Metrics {
		if data.MetricsPort, err = FreePort(); err != nil {
			return nil, err
		}
		s.MetricsURL = fmt.Sprintf("http://127.0.0.1:%d/metrics", data.MetricsPort)
	}
	if c.DataFile {
		s.DataPath = filepath.Join(c.Dir, "tpm.conf")
		data.DataFile = s.DataPath
		if err := os.WriteFile(s.DataPath, []byte(c.PluginData), 0o600); err != nil {
			return nil, fmt.Errorf("write plugin_data_file: %w", err)
		}
	}
	text, err := data.render(c.JSON)
	if err != nil {
		return nil, err
	}
	if c.Whole != "" {
		text = c.Whole
		s.flags = []string{
			"-bindAddress", "127.0.0.1", "-serverPort", strconv.Itoa(port),
			"-socketPath", s.Socket, "-dataDir", c.Dir, "-logLevel", "DEBUG",
		}
	}
	if err := os.WriteFile(s.ConfigPath, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write server configuration: %w", err)
	}
	return s, nil
}

func (c serverConfig) render(asJSON bool) (string, error) {
	if asJSON {
		return c.renderJSON(c.PluginData)
	}
	return render(serverTemplate, c)
}

// ready waits until the server serves both of its APIs and stores its bundle.
func (s *Server) ready(ctx context.Context) error {
	for _, network := range []string{"tcp", "unix"} {
		if _, err := s.WaitLog(ctx, 0, "Starting Server APIs", "network="+network); err != nil {
			return err
		}
	}
	bundle, err := s.Ctl(ctx, "bundle", "show")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.BundlePath, []byte(bundle), 0o600); err != nil {
		return fmt.Errorf("write trust bundle: %w", err)
	}
	return nil
}

// Stop ends the server.
func (s *Server) Stop() {
	if s.api != nil {
		_ = s.api.Close() // nothing is lost with a client's connection
	}
	s.Process.Stop()
}

// Ctl runs a subcommand of spire-server against this server, as an operator
// would, and returns its standard output.
func (s *Server) Ctl(ctx context.Context, args ...string) (string, error) {
	return run(ctx, s.dir, s.programs.Server, append(args, "-socketPath", s.Socket)...)
}

// Validate runs `spire-server validate` on the server's configuration, without
// a running server, and returns what it prints.
func (s *Server) Validate(ctx context.Context) (string, error) {
	return run(ctx, s.dir, s.programs.Server, "validate", "-config", s.ConfigPath)
}

// Reconfigure replaces the plugin's configuration in its file and sends the
// server SIGUSR1. The log tells how it went.
func (s *Server) Reconfigure(pluginData string) error {
	next := s.DataPath + ".next"
	if err := os.WriteFile(next, []byte(pluginData), 0o600); err != nil {
		return fmt.Errorf("write plugin_data_file: %w", err)
	}
	if err := os.Rename(next, s.DataPath); err != nil {
		return fmt.Errorf("write plugin_data_file: %w", err)
	}
	return s.Signal(reconfigureSignal)
}

// API returns a connection to the server's API for administration. It is made
// once and closed by Stop; call it from one goroutine.
func (s *Server) API() (*grpc.ClientConn, error) {
	if s.api != nil {
		return s.api, nil
	}
	conn, err := grpc.NewClient("unix://"+s.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to the server's API: %w", err)
	}
	s.api = conn
	return conn, nil
}

// run runs a program to its end, with dir as in environ, and returns its
// standard output; an error has all of its output.
func run(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environ(dir)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program),
			strings.Join(args, " "), err, strings.TrimSpace(stdout.String()+stderr.String()))
	}
	return stdout.String(), nil
}

// FreePort returns a TCP port of the loopback interface that nobody uses.
func FreePort() (int, error) {
	// Below those that the kernel gives to connections: it is still free when the
	// server is started again.
	const least, most = 10_000, 32_000
	for range 100 {
		port := least + rand.IntN(most-least)
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find a free port: a hundred are taken")
}

func makeDir(dir string) error {
	if len(dir) > MaxDir {
		return fmt.Errorf("folder %q: its path is longer than %d bytes, too long for sockets in it",
			dir, MaxDir)
	}
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return fmt.Errorf("make the folder of a server or agent: %w", err)
	}
	return nil
}

// environ makes plugins put their sockets into the folder, so that nothing is
// left elsewhere, however they end. An empty dir changes nothing.
func environ(dir string) []string {
	if dir == "" {
		return os.Environ()
	}
	return append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"))
}
