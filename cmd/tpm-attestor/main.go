// Tpm-attestor is the command-line tool for operators of the SPIRE node attestor "tpm"; see
// its --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/boot"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/certificates"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/check"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/devid"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/doctor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/ek"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/explain"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/list"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/validate"
)

// version is set by -ldflags "-X main.version=…".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, args []string, std cli.Streams) int {
	return cli.Run(ctx, newRoot(), args, std)
}

// newRoot returns the command tpm-attestor with all its subcommands.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "tpm-attestor",
		Short: "Everything that is done by hand for the SPIRE node attestor \"tpm\"",
		Long: `tpm-attestor is for the operators of the SPIRE node attestor "tpm": it shows by what a machine
is enrolled, checks configurations, makes and checks lists of machines, and prepares the certificates that
servers need.

Data goes to standard output, everything else to standard error. Exit codes: 0 done, valid or equal,
1 failed, 2 the command line or its input was not understood, 3 refused, invalid or different,
4 cannot tell.`,
		Version: buildinfo.Version(version),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cli.UsageError("%q is not a command", args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetVersionTemplate("tpm-attestor {{.Version}}\n")
	return cli.Root(root, ek.New, validate.New, check.New, explain.New, list.New, certificates.New, boot.New, devid.New, doctor.New)
}
