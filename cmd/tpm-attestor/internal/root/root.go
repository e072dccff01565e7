// Package root puts the commands of tpm-attestor together, for the program and for gendocs.
package root

import (
	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/boot"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/certificates"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/check"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/devid"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/doctor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/ek"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/evict"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/explain"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/list"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/validate"
)

// New returns the command tpm-attestor with all its subcommands.
func New(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tpm-attestor",
		Short: "Everything that is done by hand for the SPIRE node attestor \"tpm\"",
		Long: `tpm-attestor is for the operators of the SPIRE node attestor "tpm": it shows by what a machine
is enrolled, checks configurations, makes and checks lists of machines, and prepares the certificates that
servers need.

Data goes to standard output, everything else to standard error. Exit codes: 0 done, valid or equal,
1 failed, 2 the command line or its input was not understood, 3 refused, invalid or different,
4 cannot tell.`,
		Version: version,
		Example: cli.Examples(
			"tpm-attestor ek",
			"tpm-attestor validate /etc/spire/server.conf",
			"tpm-attestor check /etc/spire/server.conf machine.pem",
		),
	}
	cmd.SetVersionTemplate("tpm-attestor {{.Version}}\n")
	return cli.Root(cmd,
		ek.New,
		validate.New,
		check.New,
		explain.New,
		list.New,
		certificates.New,
		boot.New,
		devid.New,
		evict.New,
		doctor.New,
	)
}
