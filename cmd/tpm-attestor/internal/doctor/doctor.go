// Package doctor is the command that looks for what keeps a machine or a server from attesting.
package doctor

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
)

// flags are the flags of doctor.
type flags struct {
	server, serverConfig string
	device, user         string
}

// New returns the command doctor.
func New(output *cli.Format) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "doctor [CONFIG]",
		Short: "Find what keeps this machine from attesting, or a server from deciding",
		Long: `doctor looks at this machine as the agent does: the TPM's device and who may use it, whether the TPM is
locked out, keys and sessions that others have left in it, the EK certificates, the event log, and the clock.
Then it makes a whole attestation in one process, and leaves nothing in the TPM. CONFIG is the agent's
configuration, if it names a device, a password, an event log, a DevID or the SVID key's directory.

With --server-config, the attestation is decided by that server's configuration and what it names, without the
network. Lists on web servers are read from the server's caches, so that is for the server's own machine.

With --server, it looks at a server instead: each source with what it serves, its age and until when, its
cache, the disk under the caches, and the clock. It asks no network and locks nothing.

Each fault is one sentence and what to do. Passwords of the TPM's hierarchies that CONFIG does not have are read
from the environment: TPM_ENDORSEMENT_PASSWORD and TPM_OWNER_PASSWORD.

Exit codes: 0 all is well; 3 something is wrong; 4 something could not be looked at.`,
		Example: cli.Examples(
			"tpm-attestor doctor",
			"sudo tpm-attestor doctor --user spire /etc/spire/agent.conf",
			"sudo tpm-attestor doctor --server-config server.conf",
			"sudo tpm-attestor doctor --server /etc/spire/server.conf",
		),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.UsageError("unexpected argument %q", args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runDoctor(cmd, *output, f, args) },
	}
	cmd.ValidArgsFunction = cli.Files
	flags := cmd.Flags()
	flags.StringVar(&f.server, "server", "", "look at the server with this configuration, not at a machine")
	flags.StringVar(&f.serverConfig, "server-config", "", "the configuration of the server that is to decide")
	flags.StringVar(&f.device, "device", "", "the TPM: a path such as /dev/tpmrm0, or unix:/path for the socket of "+
		"a software TPM (default that of CONFIG, else /dev/tpmrm0, else /dev/tpm0)")
	flags.StringVar(&f.user, "user", "", "the user as whom SPIRE Agent runs, who has to be permitted to use the device")
	cli.Complete(cmd, cli.Files, "server", "server-config", "device")
	cli.Complete(cmd, cli.Nothing, "user")
	return cmd
}

func runDoctor(cmd *cobra.Command, output cli.Format, f flags, args []string) error {
	d := &doctor{cmd: cmd, Looker: finding.NewLooker(), report: report{Version: 1, Checks: []diagnosis{}}}
	d.progress = cli.StartProgress(cmd.ErrOrStderr(), "looking", "")
	err := d.look(f, args)
	d.progress.End()
	if err != nil {
		return err
	}
	d.report.Healthy = !d.report.has(statusFault) && !d.report.has(statusUnknown)
	if output == cli.JSON {
		err = cli.PrintJSON(cmd, &d.report)
	} else {
		err = cli.PrintText(cmd, d.report.text())
	}
	if err != nil {
		return err
	}
	switch {
	case d.report.has(statusFault):
		return cli.Exit(cli.ExitRefused, nil)
	case d.report.has(statusUnknown):
		return cli.Exit(cli.ExitCannotTell, nil)
	}
	return nil
}

// A doctor looks at a machine or a server.
type doctor struct {
	cmd *cobra.Command
	finding.Looker
	progress *cli.Progress
	report   report

	configured bool // the agent's configuration was named
}

func (d *doctor) look(f flags, args []string) error {
	if f.server == "" {
		return d.machine(f, args)
	}
	if len(args) > 0 || f.serverConfig != "" || f.device != "" || f.user != "" {
		return cli.UsageError("--server looks at a server: leave out CONFIG, --server-config, --device and --user")
	}
	return d.server(f.server)
}

// report is the JSON output of doctor.
type report struct {
	Version int         `json:"version"`
	Healthy bool        `json:"healthy"`
	Checks  []diagnosis `json:"checks"`
}

// A status is the result of a check.
type status string

// The statuses.
const (
	statusOK      status = "ok"
	statusNote    status = "note"    // worth knowing, but no fault
	statusFault   status = "fault"   // something to mend
	statusUnknown status = "unknown" // the check could not look at it
)

// A diagnosis is what a check has found. Action says what to do, or is empty.
type diagnosis struct {
	Check   string `json:"check"`
	Status  status `json:"status"`
	Message string `json:"message"`
	Action  string `json:"action,omitempty"`
}

func (d *doctor) add(check string, s status, action, format string, args ...any) {
	d.report.Checks = append(d.report.Checks, diagnosis{check, s, fmt.Sprintf(format, args...), action})
}

func (d *doctor) ok(check, format string, args ...any) { d.add(check, statusOK, "", format, args...) }

func (d *doctor) note(check, format string, args ...any) {
	d.add(check, statusNote, "", format, args...)
}

// failed adds the diagnosis for an error. The hint of a tpm.Error is the action. If the error says that
// nothing could be looked at, the status is unknown.
func (d *doctor) failed(check string, err error) {
	if with, ok := errors.AsType[*tpm.Error](err); ok {
		d.add(check, statusFault, with.Hint, "%v", with.Err)
		return
	}
	if finding.CouldNotLook(err) {
		d.add(check, statusUnknown, "", "%v", err)
		return
	}
	d.add(check, statusFault, "", "%v", err)
}

func (r *report) has(s status) bool {
	for _, c := range r.Checks {
		if c.Status == s {
			return true
		}
	}
	return false
}

func (r *report) text() string {
	var text strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&text, "%-8s %s: %s", c.Status, c.Check, c.Message)
		if c.Action != "" {
			text.WriteString(": " + c.Action)
		}
		text.WriteString("\n")
	}
	return text.String()
}

// clock compares this machine's clock with the time at which this program was built, and with the times from which
// certificates are valid.
func (d *doctor) clock(now, built time.Time, certificates []time.Time) {
	const setIt = "set the clock, for example by chrony or systemd-timesyncd: certificates and lists are judged by it"
	if now.Before(built) {
		d.add("clock", statusFault, setIt, "it says %s, before this program was made at %s", stamp(now), stamp(built))
		return
	}
	for _, from := range certificates {
		if now.Before(from) {
			d.add("clock", statusFault, setIt, "it says %s, and a certificate of the TPM is valid only from %s on",
				stamp(now), stamp(from))
			return
		}
	}
	d.ok("clock", "%s", stamp(now))
}

// lookAtClock calls clock with the current time and this program's build time.
func (d *doctor) lookAtClock(certificates []time.Time) {
	d.clock(time.Now(), buildinfo.Time(), certificates)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
