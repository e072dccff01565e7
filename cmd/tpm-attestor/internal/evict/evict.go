// Package evict is the command that evicts agents whose machines a server's configuration refuses.
package evict

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// options are the values of the flags.
type options struct {
	socket, status      string
	once, dryRun, force bool
}

// defaultSocket is the socket of SPIRE Server's local API if its configuration names none.
const defaultSocket = "/tmp/spire-server/private/api.sock"

const long = `evict runs beside a SPIRE server and evicts the agents whose machines the server's configuration
refuses by now: one that was removed from a list, one that a deny list has, one that a reloaded rule leaves out.
The machine is out within seconds, instead of at its next re-attestation.

CONFIG is the configuration file of SPIRE Server, or the contents of plugin_data; evict follows changes of that
file, and of those in plugin_data_file. It follows the same sources as the server. What the server loads from a web
server, evict reads in the server's cache, so such a source needs cache_path. It writes nothing but the status, and
asks no network but databases. Run it as the server's user, on the server's machine, in the server's working directory.

Nobody is evicted by a guess. A machine goes only if it is refused whatever a source would say that cannot tell
now, and whatever the machine would show: its EK certificate, DevID or boot, which SPIRE does not keep. It has to
be refused in two looks in a row, the second by data that were loaded after the agent attested. If more than 5
agents and more than 1 % of them would go within ten minutes, or all of two or more, nobody goes, and there is an
alarm.

It prints a line for each eviction and for each alarm. --status FILE keeps the state in a file, as metrics for
the textfile collector of Prometheus' node_exporter.

Exit codes with --once: 0 done, 1 failed, 3 too many would go, 4 a source that matters cannot tell.`

// New returns the command evict.
func New(output *cli.Format) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "evict CONFIG",
		Short: "Evict agents that the server's configuration refuses by now",
		Long:  long,
		Example: cli.Examples(
			"tpm-attestor evict /etc/spire/server.conf",
			"tpm-attestor evict plugin.conf --socket /run/spire/api.sock --status /var/lib/node_exporter/tpm.prom",
			"tpm-attestor evict server.conf --once --dry-run",
			"tpm-attestor evict server.conf --once --force --output json",
		),
		Args: cli.OneArgument("the configuration"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.force && !o.once:
				return cli.UsageError("--force is for one look, after somebody has seen who would go: add --once")
			case args[0] == "-" && !o.once:
				return cli.UsageError("the standard input cannot be followed: name a file, or add --once")
			}
			return run(cmd, o, *output, args[0])
		},
	}
	cmd.ValidArgsFunction = cli.Files
	flags := cmd.Flags()
	flags.StringVar(&o.socket, "socket", defaultSocket, "SPIRE Server's API socket")
	flags.StringVar(&o.status, "status", "", "write the state to this file after each look, in Prometheus' text format")
	flags.BoolVar(&o.once, "once", false, "look once, evict, and end")
	flags.BoolVar(&o.dryRun, "dry-run", false, "evict nobody, say who would be evicted")
	flags.BoolVar(&o.force, "force", false, "with --once: evict even if too many would go at once")
	cli.Complete(cmd, cli.Files, "socket", "status")
	return cmd
}

// run runs the command.
func run(cmd *cobra.Command, o options, output cli.Format, name string) error {
	s := &site{
		name: name, stdin: cmd.InOrStdin(), loader: config.NewLoader(), log: newLog(cmd.ErrOrStderr(), output),
		warn: func(w string) { cmd.PrintErrf("warning: %s\n", w) },
	}
	if err := s.open(cmd.Context()); err != nil {
		return err
	}
	defer s.close()
	api, err := dial(o.socket)
	if err != nil {
		return fmt.Errorf("SPIRE's socket %s: %w", o.socket, err)
	}
	defer api.close()
	e := newEvicter(o, api, s, cmd.OutOrStdout(), output)
	if o.once {
		return e.once(cmd.Context())
	}
	return e.run(cmd.Context())
}

func newEvicter(o options, api *spire, s *site, out io.Writer, format cli.Format) *evicter {
	return &evicter{
		options: o, spire: api, site: s, brake: newBrake(), now: time.Now,
		report:   &reporter{out: out, format: format, now: time.Now, alarms: map[string]alarm{}},
		interval: interval, confirmAfter: confirmAfter, unconfirmedFor: unconfirmedFor,
		returns: map[sources.EKHash]*returned{},
	}
}

// newLog returns the logger of the sources.
func newLog(err io.Writer, output cli.Format) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelWarn}
	if output == cli.JSON {
		return slog.New(slog.NewJSONHandler(err, options))
	}
	return slog.New(slog.NewTextHandler(err, options))
}
