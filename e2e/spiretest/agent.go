package spiretest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const reconfigureSignal = syscall.SIGUSR1

// An AgentConfig describes an agent to start.
type AgentConfig struct {
	// Dir is the agent's own folder. StartAgent makes it. The agent uses the files of
	// an earlier agent in it, like after a restart.
	Dir string
	// Server is the server to attest to.
	Server *Server
	// PluginData is the plugin's configuration in HCL.
	PluginData string
	// KeyManager is the configuration of the KeyManager "tpm" in HCL. If it is empty, the agent's
	// keys are in its memory or, with DiskKeys, on the disk.
	KeyManager string
	DiskKeys   bool
	// Detached lets the agent outlive the caller.
	Detached bool
}

// An Agent is a running SPIRE agent.
type Agent struct {
	*Process
	// Socket is the path of the Workload API.
	Socket string

	programs Programs
	mark     int64 // where this agent's log begins in the file, after those of earlier agents
}

// StartAgent starts an agent. It does not wait for the attestation: see Attested.
func (p Programs) StartAgent(c AgentConfig) (*Agent, error) {
	if err := makeDir(c.Dir); err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(c.Server.Address)
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	a := &Agent{Socket: filepath.Join(c.Dir, "agent.sock"), programs: p}
	text, err := render(agentTemplate, agentConfig{
		Dir: c.Dir, TrustDomain: c.Server.TrustDomain, Socket: a.Socket, Port: number,
		Bundle: c.Server.BundlePath, PluginCmd: p.AgentPlugin, PluginData: c.PluginData,
		KeyManager: c.KeyManager, DiskKeys: c.DiskKeys,
	})
	if err != nil {
		return nil, err
	}
	config := filepath.Join(c.Dir, "agent.conf")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write agent configuration: %w", err)
	}
	cmd := exec.Command(p.Agent, "run", "-config", config)
	cmd.Env = environ(c.Dir)
	log := filepath.Join(c.Dir, "agent.log")
	a.mark = (&Process{LogPath: log}).Mark()
	a.Process, err = Start("spire-agent", cmd, log, c.Detached)
	return a, err
}

// Attested waits until the agent is attested and serves its Workload API, and returns the agent's
// SPIFFE ID. If the agent ends before that, Attested returns an error.
func (a *Agent) Attested(ctx context.Context) (string, error) {
	line, err := a.WaitLog(ctx, a.mark, "Node attestation was successful")
	if err != nil {
		return "", err
	}
	if _, err := a.WaitLog(ctx, a.mark, "Starting agent APIs"); err != nil {
		return "", err
	}
	_, id, found := strings.Cut(line, `spiffe_id="`)
	id, _, closed := strings.Cut(id, `"`)
	if !found || !closed {
		return "", fmt.Errorf("no SPIFFE ID in the agent's log: %s", line)
	}
	return id, nil
}

// Log returns the log of this agent, without those of earlier agents in the same folder.
func (a *Agent) Log() string {
	return a.Process.Log()[a.mark:]
}

// Fetch runs `spire-agent api fetch x509` on the agent's Workload API, like a workload, and
// returns its output. If dir is not empty, the keys are written to that folder.
func (a *Agent) Fetch(ctx context.Context, dir string) (string, error) {
	args := []string{"api", "fetch", "x509", "-socketPath", a.Socket}
	if dir != "" {
		args = append(args, "-write", dir)
	}
	return run(ctx, "", a.programs.Agent, args...)
}
