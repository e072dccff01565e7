package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// patience is the time limit of a step, which normally takes a second or two.
const patience = 40 * time.Second

const workloadID = "spiffe://example.org/workload"

// A demo has the server, the agent and the TPM, and tells the story.
type demo struct {
	*narrator
	dir  *folder
	keep bool

	programs  spiretest.Programs
	processes []*spiretest.Process // in the order in which they were started
	tpm       *tpm
	server    *spiretest.Server
	evicter   *spiretest.Process
	agent     *spiretest.Agent
	ekHash    string
	agentID   string
}

// run tells the story.
func (d *demo) run(ctx context.Context) error {
	var err error
	if d.programs, err = spiretest.Find(); err != nil {
		return err
	}
	d.line(fmt.Sprintf("A real SPIRE server and agent, and a software TPM. All files are in %s.",
		d.dir.name))
	for _, chapter := range []func(context.Context) error{
		d.prepare, d.refuse, d.admitByHash, d.serveWorkload, d.cutOff, d.admitByCA, d.refuseCopy,
	} {
		if err := chapter(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return fmt.Errorf("%w: %w", cause, err)
			}
			return err
		}
	}
	return nil
}

// stop ends all processes, the newest first.
func (d *demo) stop() {
	for len(d.processes) > 0 {
		last := len(d.processes) - 1
		d.processes[last].Stop()
		d.processes = d.processes[:last]
	}
}

func (d *demo) path(name string) string { return filepath.Join(d.dir.path, name) }

// shown returns a path as the user would write it.
func (d *demo) shown(path string) string {
	return strings.Replace(path, d.dir.path, d.dir.name, 1)
}

func (d *demo) hashSource() string {
	return fmt.Sprintf("source \"hash_dir\" \"fleet\" {\n  path = %q\n}\n", d.path("hashes")) +
		fmt.Sprintf("svid_key        = \"required\"\nsvid_key_socket = %q\n", d.keySocket())
}

// keySocket returns the path of the socket between the server's two plugins.
func (d *demo) keySocket() string { return filepath.Join(d.path("server"), "svid.sock") }

// prepare starts the TPM and the server.
func (d *demo) prepare(ctx context.Context) error {
	d.title("A machine with a TPM, and a SPIRE server with an empty list")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := os.Mkdir(d.path("hashes"), 0o700); err != nil {
		return fmt.Errorf("make the list: %w", err)
	}
	var err error
	if d.tpm, err = startTPM(ctx, d.path("machine"), d.keep); err != nil {
		return err
	}
	d.processes = append(d.processes, d.tpm.Process)

	d.say("The machine's TPM (swtpm) has an endorsement key (EK), which nobody can copy out of it:")
	d.command("tpm-attestor-agent", "-ek", "-device", d.shown(d.tpm.device))
	report, err := d.programs.EKReport(ctx, d.tpm.device, "auto")
	if err != nil {
		return err
	}
	d.quote(report)
	if d.ekHash, err = spiretest.ParseEKHash(report); err != nil {
		return err
	}

	d.say("The server's plugin is configured with a folder that lists the known TPMs, and wants agents' keys in them:")
	d.quote(strings.ReplaceAll(d.hashSource(), d.dir.path, d.dir.name))
	d.command("spire-server", "run")
	d.server, err = d.programs.StartServer(ctx, spiretest.ServerConfig{
		Dir: d.path("server"), PluginData: d.hashSource(), DataFile: true, Detached: d.keep,
		MorePlugins: fmt.Sprintf("CredentialComposer \"tpm\" {\nplugin_cmd = %q\nplugin_data { socket = %q }\n}\n",
			d.programs.ServerPlugin, d.keySocket()),
	})
	if err != nil {
		return err
	}
	d.processes = append(d.processes, d.server.Process)
	d.say("Beside it runs what evicts the agents of machines that are taken off the list:")
	if err := d.startEvicter(ctx); err != nil {
		return err
	}
	d.outcome("a SPIRE server runs on %s", d.server.Address)
	return nil
}

// refuse shows that the server refuses an unknown TPM.
func (d *demo) refuse(ctx context.Context) error {
	d.title("Its TPM is unknown: the server refuses it")
	if err := d.wantRefused(ctx); err != nil {
		return err
	}
	d.say("Why, and what would admit it? The server's own code answers, from the same configuration:")
	if err := d.explain(ctx); err != nil {
		return err
	}
	d.outcome("refused; the server's log has the EK hash, in case it should be listed")
	return nil
}

// admitByHash shows that a file whose name is the EK hash admits the machine.
func (d *demo) admitByHash(ctx context.Context) error {
	d.title("Its EK hash is listed: the server admits it")
	entry := filepath.Join(d.path("hashes"), d.ekHash)
	d.command("touch", d.shown(entry))
	if err := os.WriteFile(entry, nil, 0o600); err != nil {
		return fmt.Errorf("list the machine: %w", err)
	}
	if err := d.wantAdmitted(ctx); err != nil {
		return err
	}
	d.outcome("admitted, with nothing restarted or reconfigured")
	return nil
}

// serveWorkload shows that a workload gets its SVID, which is the purpose of all this.
func (d *demo) serveWorkload(ctx context.Context) error {
	d.title("A workload on it gets an identity")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := d.ctl(ctx, "entry", "create", "-parentID", d.agentID, "-spiffeID", workloadID,
		"-selector", "unix:uid:"+strconv.Itoa(os.Getuid())); err != nil {
		return err
	}
	if err := d.wantSVID(ctx); err != nil {
		return err
	}
	d.outcome("the workload holds an X.509-SVID, because its machine's TPM is listed")
	return nil
}

// cutOff shows that removal from the list ends the machine's identity.
func (d *demo) cutOff(ctx context.Context) error {
	d.title("It is removed from the list: it is cut off")
	entry := filepath.Join(d.path("hashes"), d.ekHash)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began, mark, evictions := time.Now(), d.agent.Mark(), d.evicter.Mark()
	d.command("rm", d.shown(entry))
	if err := os.Remove(entry); err != nil {
		return fmt.Errorf("remove the machine from the list: %w", err)
	}
	line, err := d.evicter.WaitLog(ctx, evictions, "evicted", d.agentID)
	if err != nil {
		return err
	}
	d.log("evict", line)
	if line, err = d.agent.WaitLog(ctx, mark, "shutting down"); err != nil {
		return err
	}
	d.log("agent", line)
	// Only its end matters, not the exit code.
	_ = d.agent.Wait(ctx)
	d.endAgent()
	d.say("The agent lost its identity and exited, %.1f s after the removal. Starting it again:",
		time.Since(began).Seconds())
	if err := d.wantRefused(ctx); err != nil {
		return err
	}
	d.say("(Without \"tpm-attestor evict\" it would be refused at its next re-attestation, at half its SVID's life.)")
	d.outcome("cut off in one step, and its workloads with it")
	return nil
}

// admitByCA shows admission by a CA, after a reload of the configuration.
func (d *demo) admitByCA(ctx context.Context) error {
	d.title("Its vendor's CA is trusted: the server admits it by its EK certificate")
	d.say("The plugin's configuration becomes, while the server runs:")
	config := d.hashSource() +
		fmt.Sprintf("source \"ek_ca\" \"vendors\" {\n  bundles = { example = %q }\n}\n", d.tpm.caPath) +
		"allow \"listed\" { any = [\"fleet\"] }\nallow \"vouched\" { any = [\"vendors\"] }\n"
	d.quote(strings.ReplaceAll(config, d.dir.path, d.dir.name))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mark := d.server.Mark()
	d.command("kill", "-USR1", strconv.Itoa(d.server.PID()))
	if err := d.server.Reconfigure(config); err != nil {
		return err
	}
	line, err := d.server.WaitLog(ctx, mark, "econfigured", "tpm")
	if err != nil {
		return err
	}
	d.log("server", line)
	if err := d.wantAdmitted(ctx); err != nil {
		return err
	}
	if err := d.wantSVID(ctx); err != nil {
		return err
	}
	d.outcome("admitted by its vendor's CA; the selectors say by which rule, CA and certificate")
	return nil
}

// refuseCopy shows that an agent's data is of no use on a machine with another TPM.
func (d *demo) refuseCopy(ctx context.Context) error {
	d.title("Its agent's data is copied to another machine: worth nothing there")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	d.say("The agent's key is in the TPM. On its disk is only what that TPM makes each of its two keys from:")
	keys := d.keysIn(d.path("agent"))
	d.command("cat", d.shown(keys)+"/agent-svid-*.json")
	if err := d.quoteFiles(filepath.Join(keys, "agent-svid-*.json")); err != nil {
		return err
	}
	other, err := startTPM(ctx, d.path("thief"), d.keep)
	if err != nil {
		return err
	}
	defer other.Stop()
	stolen := d.path("stolen")
	if err := d.copyAgent(ctx, stolen); err != nil {
		return err
	}
	mark := d.server.Mark()
	a, err := d.runAgent(stolen, other)
	if err != nil {
		return err
	}
	defer a.Stop()
	if err := a.Wait(ctx); err == nil || ctx.Err() != nil {
		return fmt.Errorf("the copy should have been refused, but ended otherwise: %w", errors.Join(err, ctx.Err()))
	}
	for _, words := range []string{"leaving out a key of another TPM", "PermissionDenied"} {
		line, err := a.WaitLog(ctx, 0, words)
		if err != nil {
			return err
		}
		d.log("agent", line)
	}
	line, err := d.server.WaitLog(ctx, mark, "outcome=refused")
	if err != nil {
		return err
	}
	d.log("server", line)
	d.outcome("the copy has an SVID and no key for it, and its own TPM is not listed")
	return nil
}
