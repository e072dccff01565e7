// Package check has the command that says what a server would decide about a machine, or about the machines in a
// file of tests.
package check

import (
	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/preview"
)

// flags are the flags of the command check.
type flags struct {
	preview.Flags
	tests string
}

const long = `check says what a server with this configuration would decide about a machine, and why: what each
source says, with the place in its list, the list's serial and age, and until when it serves; what each rule
comes to; the SPIFFE ID and the selectors, or what the agent would be told and whether it would try again; the
first cause; and the smallest change that would admit the machine. It is the server's own code that decides.

CONFIG is the configuration file of SPIRE Server, or the contents of plugin_data. EK is an EK hash, or a file
as "tpm-attestor ek FILE" reads it; a file with the EK certificate says more than a hash. Without EK, it is
this machine's TPM.

check reads files, folders and the caches of a running server, which it neither locks nor writes. It asks no
network, so what it says of a web server's list is as of the server's cache. --network lets it ask web servers,
databases and certificate services as the server would. What only the machine itself can show, such as its
quote, is said to be needed, and not guessed. Run it as the server's user or as root, on the server's machine.

--tests FILE checks a file of expected decisions, for a site's own CI:

  {"version": 1, "tests": [
    {"name": "a web server", "ek": "<EK hash or file>", "decision": "admitted",
     "rules": ["production"], "selectors": ["label:env:prod"], "spiffe_id": "spiffe://..."},
    {"name": "a stolen laptop", "ek": "<EK hash or file>", "decision": "refused"}]}

The decision is admitted, refused, unavailable or depends. rules are all that hold, selectors are some that are
there. Files are relative to FILE.

Exit codes: 0 admitted, or all tests pass; 3 refused, or a test fails; 4 the server could not tell, or it
depends on what is not known here.`

// New returns the command check.
func New(output *cli.Format) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "check CONFIG [EK]",
		Short: "Say what a server would decide about a machine, and why",
		Long:  long,
		Example: cli.Examples(
			"tpm-attestor check /etc/spire/server.conf machine.pem",
			"tpm-attestor check server.conf 1b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c6879285ceff6094fa556af485c",
			"tpm-attestor check server.conf --network --output json machine.pem",
			"tpm-attestor check server.conf --tests decisions.json",
		),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return cli.UsageError("name the configuration")
			case len(args) > 2:
				return cli.UsageError("unexpected argument %q", args[2])
			case f.tests != "" && len(args) > 1:
				return cli.UsageError("--tests names the EKs: leave %q out", args[1])
			case f.tests != "":
				return runTests(cmd, &f, *output, args[0])
			case len(args) == 1:
				return f.Run(cmd, *output, args[0], "")
			}
			return f.Run(cmd, *output, args[0], args[1])
		},
	}
	cmd.ValidArgsFunction = cli.Files
	f.Add(cmd)
	cmd.Flags().StringVar(&f.tests, "tests", "", "check a file of expected decisions")
	cli.Complete(cmd, cli.Files, "tests")
	return cmd
}
