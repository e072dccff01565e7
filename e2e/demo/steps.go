package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// startEvicter starts tpm-attestor evict, and waits until it follows the server's configuration.
func (d *demo) startEvicter(ctx context.Context) error {
	args := []string{"evict", d.server.DataPath, "--socket", d.server.Socket}
	d.command("tpm-attestor", "evict", d.shown(d.server.DataPath), "--socket", d.shown(d.server.Socket))
	var err error
	//nolint:gosec,noctx // G204: the demo's own program; it ends with the demo
	d.evicter, err = spiretest.Start("evict", exec.Command(d.programs.Tool, args...), d.path("evict.log"), d.keep)
	if err != nil {
		return err
	}
	d.processes = append(d.processes, d.evicter)
	_, err = d.evicter.WaitLog(ctx, 0, "follows")
	return err
}

// startAgent starts an agent on the machine.
func (d *demo) startAgent() error {
	var err error
	if d.agent, err = d.runAgent(d.path("agent"), d.tpm); err != nil {
		return err
	}
	d.processes = append(d.processes, d.agent.Process)
	return nil
}

// keysIn returns the folder of an agent's keys.
func (*demo) keysIn(dir string) string { return filepath.Join(dir, "keys") }

// runAgent starts an agent in a folder, on a machine with a TPM. The key of its SVID is in that TPM.
func (d *demo) runAgent(dir string, on *tpm) (*spiretest.Agent, error) {
	d.command("spire-agent", "run")
	return d.programs.StartAgent(spiretest.AgentConfig{
		Dir: dir, Server: d.server, Detached: d.keep,
		PluginData: fmt.Sprintf("      device = %q\n      svid_key_directory = %q", on.device, d.keysIn(dir)),
		KeyManager: fmt.Sprintf("      device = %q\n      directory = %q", on.device, d.keysIn(dir)),
	})
}

// copyAgent copies what the agent keeps on its disk.
func (d *demo) copyAgent(ctx context.Context, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return fmt.Errorf("copy the agent's data: %w", err)
	}
	from := d.path("agent")
	data := filepath.Join(from, "agent-data.json")
	d.command("cp", "-r", d.shown(data), d.shown(d.keysIn(from)), d.shown(to))
	//nolint:gosec // G204: the paths are this program's own
	if out, err := exec.CommandContext(ctx, "cp", "-r", data, d.keysIn(from), to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the agent's data: %w\n%s", err, out)
	}
	return nil
}

// quoteFiles prints what is in files.
func (d *demo) quoteFiles(pattern string) error {
	names, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, name := range names {
		b, err := os.ReadFile(name) //nolint:gosec // G304: the demo's own folder
		if err != nil {
			return err
		}
		d.quote(string(b))
	}
	return nil
}

// endAgent stops the agent and removes it from the processes. It must be the last one started.
func (d *demo) endAgent() {
	d.agent.Stop()
	d.processes = d.processes[:len(d.processes)-1]
}

// wantRefused starts an agent, which must be refused. It shows the reason and the server's empty
// list of agents.
func (d *demo) wantRefused(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mark := d.server.Mark()
	if err := d.startAgent(); err != nil {
		return err
	}
	if err := d.agent.Wait(ctx); err == nil || ctx.Err() != nil {
		return fmt.Errorf("the agent should have been refused, but ended otherwise: %w",
			errors.Join(err, ctx.Err()))
	}
	line, err := d.server.WaitLog(ctx, mark, "outcome=refused", d.ekHash)
	if err != nil {
		return err
	}
	d.log("server", line)
	for line := range strings.Lines(d.agent.Log()) {
		if strings.Contains(line, "PermissionDenied") {
			d.log("agent", strings.TrimSpace(line))
			break
		}
	}
	d.endAgent()
	return d.ctl(ctx, "agent", "list")
}

// explain shows what the operator's tool says of a machine that is refused.
func (d *demo) explain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.command("tpm-attestor", "explain", d.shown(d.server.DataPath), "--device", d.shown(d.tpm.device))
	//nolint:gosec // G204: the demo's own program
	cmd := exec.CommandContext(ctx, d.programs.Tool, "explain", d.server.DataPath, "--device", d.tpm.device)
	answer, err := cmd.Output()
	const refused = 3
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != refused {
		return fmt.Errorf("tpm-attestor explain should have said that the machine is refused: %w\n%s", err, answer)
	}
	decision, _, _ := strings.Cut(string(answer), "\nSources")
	d.quote(strings.ReplaceAll(decision, d.dir.path, d.dir.name))
	return nil
}

// wantAdmitted starts an agent, which must be admitted. It shows the server's record of it.
func (d *demo) wantAdmitted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.startAgent(); err != nil {
		return err
	}
	var err error
	if d.agentID, err = d.agent.Attested(ctx); err != nil {
		return err
	}
	if err := d.ctl(ctx, "agent", "list"); err != nil {
		return err
	}
	return d.ctl(ctx, "agent", "show", "-spiffeID", d.agentID)
}

// wantSVID fetches the workload's SVID as soon as the agent has it.
func (d *demo) wantSVID(ctx context.Context) error {
	d.command("spire-agent", "api", "fetch", "x509")
	return spiretest.Poll(ctx, func() error {
		answer, err := d.agent.Fetch(ctx, "")
		if err != nil {
			return err
		}
		if !strings.Contains(answer, workloadID) {
			return fmt.Errorf("the workload is not %s:\n%s", workloadID, answer)
		}
		d.quote(answer)
		return nil
	})
}

// ctl runs a subcommand of spire-server and shows the command and its output.
func (d *demo) ctl(ctx context.Context, args ...string) error {
	d.command(append([]string{"spire-server"}, args...)...)
	answer, err := d.server.Ctl(ctx, args...)
	if err != nil {
		return err
	}
	d.quote(answer)
	return nil
}
