// Package preview says what a server would decide about a machine, and why, for people and in JSON. The server's own
// code decides: see server.Previewer.
package preview

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

// Timeout is how long a preview may take: lists may be long, and TPMs slow.
const Timeout = 5 * time.Minute

// Flags are the flags of a command that asks what a server would decide.
type Flags struct {
	tpmFlags
	Network bool // ask web servers, databases and certificate services, too
}

// Add adds the flags to a command.
func (f *Flags) Add(cmd *cobra.Command) {
	f.add(cmd)
	cmd.Flags().BoolVar(&f.Network, "network", false, "ask web servers, databases and certificate services, too")
}

// Run prints what a server would decide about a machine, and returns the exit code as an error. ek is empty for this
// machine's TPM.
func (f *Flags) Run(cmd *cobra.Command, output cli.Format, configName, ek string) error {
	if configName == "-" && ek == "-" {
		return cli.UsageError("only one of CONFIG and EK can be the standard input")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), Timeout)
	defer cancel()
	var s *Subject
	var err error
	if ek == "" {
		s, err = f.subject(ctx, cmd.ErrOrStderr())
	} else {
		s, err = Named(ek, cmd.InOrStdin())
	}
	if err != nil {
		return err
	}
	k, err := Open(ctx, cmd, configName, f.Network)
	if err != nil {
		return err
	}
	defer k.Close()
	p := cli.StartProgress(cmd.ErrOrStderr(), "asking the sources", "")
	result, err := k.Check(ctx, s)
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

// A Checker checks machines under one configuration.
type Checker struct {
	config    *config.Config
	previewer *server.Previewer
	network   bool
	hasDomain bool // the configuration names the trust domain
}

// Open reads the configuration name, or the standard input if that is "-", and loads its sources. A configuration
// that a server would refuse is an error. The caller closes the Checker.
func Open(ctx context.Context, cmd *cobra.Command, name string, network bool) (*Checker, error) {
	content, err := input.Read(name, cmd.InOrStdin(), cli.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := config.NewLoader().LoadFile(ctx, string(content))
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return nil, fmt.Errorf("the configuration does not work: %w", problems)
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	for _, w := range c.Warnings {
		cmd.PrintErrf("warning: %s\n", w)
	}
	k := &Checker{config: c, network: network, hasDomain: !c.TrustDomain.IsZero()}
	if !k.hasDomain {
		c.TrustDomain = spiffeid.RequireTrustDomainFromString(UnknownTrustDomain)
	}
	c.Examine(network)
	p := cli.StartProgress(cmd.ErrOrStderr(), "loading the sources", "")
	defer p.End()
	if k.previewer, err = server.NewPreviewer(ctx, c); err != nil {
		return nil, err
	}
	return k, nil
}

// Close closes the sources.
func (k *Checker) Close() { k.previewer.Close() }

// Check says what the server would decide about a machine.
func (k *Checker) Check(ctx context.Context, s *Subject) (*Report, error) {
	p, err := k.previewer.Preview(ctx, &s.Evidence, k.network)
	if err != nil {
		return nil, cli.Exit(cli.ExitCannotTell, fmt.Errorf("ask the sources: %w", err))
	}
	r := NewReport(k.config, s, p, k.network)
	if r.SPIFFEID != "" && !k.hasDomain {
		r.Notes = append(r.Notes, NoTrustDomain)
	}
	return r, nil
}

// UnknownTrustDomain is used in place of the trust domain if the configuration does not name it.
const UnknownTrustDomain = "trust-domain.invalid"

// NoTrustDomain is what a person is told if UnknownTrustDomain is in a SPIFFE ID.
const NoTrustDomain = "the configuration does not name the trust domain: " + UnknownTrustDomain + " in the SPIFFE ID " +
	"stands for it: name the whole configuration of SPIRE Server, which has it in its block server"

// exit returns the exit code as an error.
func (r *Report) exit() error {
	switch r.Decision {
	case Admitted:
		return nil
	case Refused:
		return cli.Exit(cli.ExitRefused, nil)
	}
	return cli.Exit(cli.ExitCannotTell, nil)
}
