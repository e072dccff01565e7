package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// checkTimeout is how long it may take: lists may be long, and TPMs slow.
const checkTimeout = 5 * time.Minute

// checkFlags are the flags of the command check.
type checkFlags struct {
	tpmFlags
	network bool
	tests   string
}

const checkLong = `check says what a server with this configuration would decide about a machine, and why: what each
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

func newCheck(output *cli.Format) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check CONFIG [EK]",
		Short: "Say what a server would decide about a machine, and why",
		Long:  checkLong,
		Example: cli.Examples(
			"tpm-attestor check /etc/spire/server/server.conf machine.pem",
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
				return runCheck(cmd, &f, *output, args[0], "")
			}
			return runCheck(cmd, &f, *output, args[0], args[1])
		},
	}
	f.add(cmd)
	return cmd
}

func (f *checkFlags) add(cmd *cobra.Command) {
	f.tpmFlags.add(cmd)
	cmd.Flags().BoolVar(&f.network, "network", false, "ask web servers, databases and certificate services, too")
	if cmd.Name() == "check" {
		cmd.Flags().StringVar(&f.tests, "tests", "", "check a file of expected decisions")
	}
}

// runCheck checks a machine. ek is empty for this machine's TPM.
func runCheck(cmd *cobra.Command, f *checkFlags, output cli.Format, configName, ek string) error {
	if configName == "-" && ek == "-" {
		return cli.UsageError("only one of CONFIG and EK can be the standard input")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), checkTimeout)
	defer cancel()
	var s *subject
	var err error
	if ek == "" {
		s, err = f.subject(ctx, cmd.ErrOrStderr())
	} else {
		s, err = subjectNamed(ek, cmd.InOrStdin())
	}
	if err != nil {
		return err
	}
	k, err := newChecker(ctx, cmd, configName, f.network)
	if err != nil {
		return err
	}
	defer k.close()
	p := cli.StartProgress(cmd.ErrOrStderr(), "asking the sources", "")
	result, err := k.check(ctx, s)
	p.End()
	if err != nil {
		return err
	}
	if output == cli.JSON {
		err = cli.PrintJSON(cmd, result)
	} else {
		err = cli.PrintText(cmd, result.text())
	}
	if err != nil {
		return err
	}
	return result.exit()
}

// A checker checks machines under one configuration.
type checker struct {
	config     *config.Config
	previewer  *server.Previewer
	network    bool
	namesTrust bool // the configuration names the trust domain
}

// newChecker reads the configuration and loads its sources. A configuration that a server would
// refuse is an error. The checker must be closed.
func newChecker(ctx context.Context, cmd *cobra.Command, name string, network bool) (*checker, error) {
	content, err := input.Read(name, cmd.InOrStdin(), cli.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := config.NewLoader().LoadFile(ctx, string(content))
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return nil, fmt.Errorf("a server refuses this configuration: %w", problems)
	}
	if err != nil {
		return nil, err
	}
	for _, w := range c.Warnings {
		cmd.PrintErrf("warning: %s\n", w)
	}
	k := &checker{config: c, network: network, namesTrust: !c.TrustDomain.IsZero()}
	if !k.namesTrust {
		c.TrustDomain = spiffeid.RequireTrustDomainFromString(unknownTrustDomain)
	}
	c.Examine(network)
	p := cli.StartProgress(cmd.ErrOrStderr(), "loading the sources", "")
	defer p.End()
	k.previewer, err = server.NewPreviewer(ctx, c)
	return k, err
}

func (k *checker) close() { k.previewer.Close() }

// check says what the server would decide about a machine.
func (k *checker) check(ctx context.Context, s *subject) (*checked, error) {
	p, err := k.previewer.Preview(ctx, &s.evidence, k.network)
	if err != nil {
		return nil, cli.Exit(cli.ExitCannotTell, fmt.Errorf("ask the sources: %w", err))
	}
	r := newChecked(k.config, s, p, k.network)
	if r.SPIFFEID != "" && !k.namesTrust {
		r.Notes = append(r.Notes, "the configuration does not name the trust domain: "+unknownTrustDomain+
			" in the SPIFFE ID stands for it")
	}
	return r, nil
}

// unknownTrustDomain stands for a trust domain that the configuration does not name.
const unknownTrustDomain = "trust-domain.invalid"

// exit returns the exit code as an error.
func (r *checked) exit() error {
	switch r.Decision {
	case decisionAdmitted:
		return nil
	case decisionRefused:
		return cli.Exit(cli.ExitRefused, nil)
	}
	return cli.Exit(cli.ExitCannotTell, nil)
}
