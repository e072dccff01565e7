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

// A ServerConfig describes a server to start.
type ServerConfig struct {
	// Dir is the server's own folder. StartServer makes it.
	Dir string
	// TrustDomain is the trust domain. Empty means "example.org".
	TrustDomain string
	// PluginData is the plugin's configuration: HCL, or a JSON object if JSON is true.
	PluginData string
	// JSON asks for a configuration in JSON, like those of Helm charts.
	JSON bool
	// DataFile asks for a separate file with PluginData, which the server reads again
	// at SIGUSR1: see Server.Reconfigure.
	DataFile bool
	// Whole is a whole configuration in HCL, to use instead of a generated one. This
	// package only replaces addresses, data_dir and log level. Of the fields below,
	// only Detached is used then.
	Whole string
	// AgentTTL is the lifetime of an agent's SVID. Zero means SPIRE's default.
	AgentTTL time.Duration
	// Metrics asks for metrics for Prometheus: see Server.MetricsURL. It is only for
	// generated configurations in HCL.
	Metrics bool
	// LogLevel is the log level; empty means "DEBUG". MorePlugins are blocks of other
	// plugins. Both are only for generated configurations in HCL.
	LogLevel, MorePlugins string
	// DatastorePath is the file with the datastore, which servers may share; empty means one in
	// Dir. It is only for generated configurations in HCL.
	DatastorePath string
	// Detached lets the server outlive the caller.
	Detached bool
}

// A Server is a running SPIRE server.
type Server struct {
	*Process
	// Address is the host and port of the API for agents.
	Address string
	// Socket is the path of the API for administration.
	Socket string
	// ConfigPath is the file with the configuration. BundlePath is the file with the
	// certificates with which agents verify the server.
	ConfigPath, BundlePath string
	// DataPath is the file with the plugin's configuration, if DataFile is true.
	DataPath string
	// MetricsURL is the URL of the metrics, if Metrics is true.
	MetricsURL string
	// TrustDomain is the trust domain.
	TrustDomain string

	dir      string
	flags    []string // besides -config
	programs Programs
	api      *grpc.ClientConn
}

// StartServer starts a server and waits until it answers.
func (p Programs) StartServer(ctx context.Context, c ServerConfig) (*Server, error) {
	if err := makeDir(c.Dir); err != nil {
		return nil, err
	}
	// Another process may take a free port before the server binds it.
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

// WriteServerConfig writes the configuration of a server without starting it.
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
		Datastore: cmp.Or(c.DatastorePath, filepath.Join(c.Dir, "datastore.sqlite3")),
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

// ready waits until the server serves both APIs, and writes the bundle to BundlePath.
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

// Ctl runs a subcommand of spire-server for this server, like an operator, and returns its
// standard output.
func (s *Server) Ctl(ctx context.Context, args ...string) (string, error) {
	return run(ctx, s.dir, s.programs.Server, append(args, "-socketPath", s.Socket)...)
}

// Validate runs `spire-server validate` on the server's configuration and returns its output. The
// server need not run.
func (s *Server) Validate(ctx context.Context) (string, error) {
	return run(ctx, s.dir, s.programs.Server, "validate", "-config", s.ConfigPath)
}

// Reconfigure replaces the file with the plugin's configuration and sends SIGUSR1 to the server.
// The log has the result.
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

// API returns a connection to the server's API for administration. The first call makes the
// connection, and Stop closes it. API is not safe for concurrent use.
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

// run runs a program and returns its standard output. For dir, see environ. An error has all of
// the program's output.
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

// FreePort returns an unused TCP port of the loopback interface.
func FreePort() (int, error) {
	// The kernel does not use these ports for outgoing connections, so the port is still
	// free when the server is restarted.
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

// environ returns an environment in which plugins make their sockets in the folder dir. So they
// leave nothing elsewhere, even if they are killed. If dir is empty, nothing changes.
func environ(dir string) []string {
	if dir == "" {
		return os.Environ()
	}
	return append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"))
}
