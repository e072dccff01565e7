// Package validate is the command that checks a configuration of either plugin, and what it names.
package validate

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// flags are the flags of validate.
type flags struct {
	asAgent bool
	user    string
	network bool
}

// New returns the command validate.
func New(output *cli.Format) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "validate CONFIG",
		Short: "Check a configuration of the server plugin or of the agent plugin, and what it names",
		Long: `validate checks a configuration of the server plugin or of the agent plugin as SPIRE's call to Validate
does, shows the warnings too, and reads what the configuration names: lists, CA files, boot profiles, keys,
tokens and certificates. It also finds rules that decide nothing, deny lists that deny nobody, and machines
that would get the same SPIFFE ID. CONFIG is the configuration file of SPIRE Server or SPIRE Agent, or just
the contents of plugin_data, in HCL or JSON; "-" is the standard input. Files in plugin_data_file are read
as SPIRE reads them; a relative path begins at the working directory.

It changes nothing, takes no lock, opens no TPM and reads no cache, and asks no network unless --network
says so. Then it fetches the lists on web servers and asks the databases. What ek_ca and devid fetch depends on a
machine's certificate: tpm-attestor check --network fetches it for one machine.

With --user, it also says what that user may not read or write, from the modes, owners and groups along each
path. ACLs, security modules and the rights that a file server gives are not looked at.

validate recognizes the agent's configuration by its block agent, or in plugin_data by its keys. In a whole file it
checks the KeyManager "tpm" too, and whether it fits the node attestor. For other
contents, such as an empty plugin_data, --agent says that they are the agent's.

Exit codes: 0 valid, perhaps with warnings; 3 not valid; 4 not known, since something could not be looked at.`,
		Example: cli.Examples(
			"tpm-attestor validate /etc/spire/server.conf",
			"sudo tpm-attestor validate --user spire /etc/spire/server.conf",
			"tpm-attestor validate /etc/spire/agent.conf",
			"tpm-attestor validate --agent plugin_data.json",
		),
		Args: cli.OneArgument("the configuration"),
		RunE: func(cmd *cobra.Command, args []string) error { return runValidate(cmd, *output, f, args[0]) },
	}
	cmd.ValidArgsFunction = cli.Files
	flags := cmd.Flags()
	flags.BoolVar(&f.asAgent, "agent", false, "CONFIG is the agent's, even if its contents do not show that")
	flags.StringVar(&f.user, "user", "", "the user as whom SPIRE runs: a name, a number, or <uid>:<gid> as in "+
		"a container")
	flags.BoolVar(&f.network, "network", false, "fetch the lists on web servers, and ask databases, as well")
	cli.Complete(cmd, cli.Nothing, "user")
	return cmd
}

// validated is the JSON output of validate. Problems and Warnings are about the configuration alone. Findings
// has those as well, and what is wrong with the things that the configuration names.
type validated struct {
	Version  int          `json:"version"`
	Side     string       `json:"side"`
	Valid    bool         `json:"valid"`
	Problems []problem    `json:"problems"`
	Warnings []string     `json:"warnings"`
	Findings finding.List `json:"findings"`
}

// The values of validated.Side.
const (
	sideServer = "server"
	sideAgent  = "agent"
)

// problem is one mistake. At is the path of keys, or empty if the mistake is in no single key. File and Line say
// where the mistake is, if it is in a file of plugin_data_file.
type problem struct {
	At      string `json:"at"`
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Message string `json:"message"`
}

// A validation is one run of validate.
type validation struct {
	flags
	cmd  *cobra.Command
	user *access.User // nil without --user
	finding.Looker
	result *validated
	// attestor is the configuration of the agent's node attestor, or nil if it is not known or not valid.
	attestor *tpm.Config
	// attestorData is the plugin_data of attestor.
	attestorData config.Data
}

func runValidate(cmd *cobra.Command, output cli.Format, f flags, name string) error {
	v := &validation{
		flags: f, cmd: cmd, Looker: finding.NewLooker(),
		result: &validated{
			Version: 1, Side: sideServer, Problems: []problem{}, Warnings: []string{}, Findings: finding.List{},
		},
	}
	if f.user != "" {
		var err error
		if v.user, err = access.Lookup(f.user); err != nil {
			return cli.UsageError("--user: %w", err)
		}
	}
	content, err := input.Read(name, cmd.InOrStdin(), cli.MaxConfig)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	file := config.NewLoader().Open(cmd.Context(), string(content))
	if name != "-" {
		v.may("", name, access.Read)
	}
	for _, p := range file.DataFiles() {
		v.may(p.At, p.Path, access.Read)
	}
	v.check(name, string(content), file)
	if err := printValidated(cmd, output, v.result); err != nil {
		return err
	}
	return v.result.exit()
}

// check finds out which plugin the configuration is for, and checks it.
func (v *validation) check(name, text string, file *config.File) {
	data, isFile, err := file.AgentData()
	switch {
	case isFile:
		v.checkAgent(name, data, err)
		v.checkKeyManager(name, file)
	case agent.IsKeyManager(text):
		v.result.Side = sideAgent
		v.checkKeys(name, "", config.Data{Text: text})
	case v.asAgent || agent.HasKeys(text):
		v.checkAgent(name, config.Data{Text: text}, nil)
	default:
		v.checkServer(file)
	}
	r := v.result
	r.Valid = !r.Findings.Has(finding.Error) && !r.Findings.Has(finding.Unknown)
}

// exit returns the exit code as an error, or nil if it is 0.
func (r *validated) exit() error {
	switch {
	case r.Findings.Has(finding.Error):
		return cli.Exit(cli.ExitRefused, nil)
	case r.Findings.Has(finding.Unknown):
		return cli.Exit(cli.ExitCannotTell, nil)
	}
	return nil
}

// problem adds a mistake in the configuration.
func (r *validated) problem(p config.Problem) {
	r.Problems = append(r.Problems, problem{p.Path, p.File, p.Line, p.Message})
	r.Findings = append(r.Findings, finding.Finding{
		Severity: finding.Error, At: p.Path, File: p.File, Line: p.Line, Message: p.Message,
	})
}

// problemsIn adds mistakes in the plugin_data of one of the agent's plugins. It puts path before each key.
func (r *validated) problemsIn(data config.Data, path string, problems []tpm.Problem) {
	lines := data.Lines()
	for _, p := range problems {
		r.problem(config.Problem{Path: path + p.Key, File: data.File, Line: lines(p.Key), Message: p.Message})
	}
}

// refused adds why the configuration could not be loaded: its mistakes, or that a file could not be looked at.
func (r *validated) refused(err error) {
	problems, ok := errors.AsType[config.Problems](err)
	if !ok {
		r.Findings = append(r.Findings, finding.Finding{Severity: finding.Unknown, At: "plugins", Message: err.Error()})
	}
	for _, p := range problems {
		r.problem(p)
	}
}

func printValidated(cmd *cobra.Command, output cli.Format, r *validated) error {
	if output == cli.JSON {
		return cli.PrintJSON(cmd, r)
	}
	var text strings.Builder
	for _, s := range []finding.Severity{finding.Error, finding.Unknown, finding.Warning} {
		for _, f := range r.Findings {
			if f.Severity == s {
				text.WriteString(f.String() + "\n")
			}
		}
	}
	if _, err := cmd.ErrOrStderr().Write([]byte(text.String())); err != nil {
		return err
	}
	if r.Valid {
		return cli.PrintText(cmd, "valid\n")
	}
	return nil
}
