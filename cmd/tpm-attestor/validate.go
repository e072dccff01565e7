package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// maxConfig is more than the size of the largest configuration that is accepted, in bytes.
const maxConfig = 2 << 20

func newValidate(output *format) *cobra.Command {
	var asAgent bool
	cmd := &cobra.Command{
		Use:   "validate CONFIG",
		Short: "Check a configuration of the server plugin or of the agent plugin",
		Long: `validate checks a configuration of the server plugin or of the agent plugin as SPIRE's call to Validate
does, and shows the warnings too. CONFIG is the configuration file of SPIRE Server or SPIRE Agent, or just
the contents of plugin_data, in HCL or JSON; "-" is the standard input. It opens no list and no TPM, takes no
lock and asks no network.

validate recognizes the agent's configuration by its block agent, or in plugin_data by its keys. For other
contents, such as an empty plugin_data, --agent says that they are the agent's.

Exit code 3 says that the configuration is not valid.`,
		Example: examples(
			"tpm-attestor validate /etc/spire/server/server.conf",
			"tpm-attestor validate /etc/spire/agent/agent.conf",
			"tpm-attestor validate --agent plugin_data.json",
		),
		Args: oneArgument("the configuration"),
		RunE: func(cmd *cobra.Command, args []string) error { return runValidate(cmd, *output, asAgent, args[0]) },
	}
	cmd.Flags().BoolVar(&asAgent, "agent", false, "CONFIG is the agent's, even if its contents do not show that")
	return cmd
}

// oneArgument requires exactly one argument.
func oneArgument(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return usageError("name %s", what)
		case 1:
			return nil
		}
		return usageError("unexpected argument %q", args[1])
	}
}

// validated is the JSON output of validate.
type validated struct {
	Version  int       `json:"version"`
	Side     string    `json:"side"`
	Valid    bool      `json:"valid"`
	Problems []problem `json:"problems"`
	Warnings []string  `json:"warnings"`
}

// The values of validated.Side.
const (
	sideServer = "server"
	sideAgent  = "agent"
)

// problem is one mistake. At is the path of keys, or empty if the mistake is in the whole.
type problem struct {
	At      string `json:"at"`
	Message string `json:"message"`

	text string // both, in a line
}

func runValidate(cmd *cobra.Command, output format, asAgent bool, name string) error {
	content, err := input.Read(name, cmd.InOrStdin(), maxConfig)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	text := string(content)
	result := &validated{Version: 1, Side: sideServer, Problems: []problem{}, Warnings: []string{}}
	if data, isFile, err := config.AgentData(text); isFile {
		result.checkAgent(data, err)
	} else if asAgent || agent.HasKeys(text) {
		result.checkAgent(text, nil)
	} else if err := result.checkServer(cmd.Context(), text); err != nil {
		return err
	}
	if err := printValidated(cmd, output, result); err != nil {
		return err
	}
	if !result.Valid {
		return &exitError{code: exitRefused}
	}
	return nil
}

// checkServer checks the server's configuration.
func (r *validated) checkServer(ctx context.Context, text string) error {
	c, err := config.NewLoader().LoadFile(ctx, text)
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			r.Problems = append(r.Problems, problem{p.Path, p.Message, p.String()})
		}
		return nil
	}
	if err != nil {
		return err
	}
	r.Valid = true
	r.Warnings = append(r.Warnings, c.Warnings...)
	return nil
}

// checkAgent checks the agent's plugin_data. The error says why there is none.
func (r *validated) checkAgent(data string, err error) {
	r.Side = sideAgent
	if err != nil {
		r.Problems = append(r.Problems, problem{"plugins", err.Error(), "plugins: " + err.Error()})
		return
	}
	_, problems := agent.ParseConfig(data)
	for _, p := range problems {
		r.Problems = append(r.Problems, problem{p.Key, p.Message, p.String()})
	}
	r.Valid = len(problems) == 0
}

func printValidated(cmd *cobra.Command, output format, r *validated) error {
	if output == outputJSON {
		return printJSON(cmd, r)
	}
	var text strings.Builder
	for _, p := range r.Problems {
		text.WriteString(p.text + "\n")
	}
	for _, w := range r.Warnings {
		text.WriteString("warning: " + w + "\n")
	}
	if _, err := cmd.ErrOrStderr().Write([]byte(text.String())); err != nil {
		return err
	}
	if r.Valid {
		return printText(cmd, "valid\n")
	}
	return nil
}
