package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// maxConfig is more than any configuration that is accepted, in bytes.
const maxConfig = 2 << 20

func newValidate(output *format) *cobra.Command {
	return &cobra.Command{
		Use:   "validate CONFIG",
		Short: "Check a server's configuration",
		Long: `validate checks a configuration of the server plugin as SPIRE's call to Validate does, and shows the
warnings too. CONFIG is SPIRE Server's configuration file, or just the contents of plugin_data, in HCL or
JSON; "-" is the standard input. It opens no list, takes no lock and asks no network.

Exit code 3 says that the configuration is not valid.`,
		Example: examples(
			"tpm-attestor validate /etc/spire/server/server.conf",
			"helm template … | tpm-attestor validate -",
		),
		Args: oneArgument("the configuration"),
		RunE: func(cmd *cobra.Command, args []string) error { return runValidate(cmd, *output, args[0]) },
	}
}

// oneArgument asks for exactly one argument.
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

// validated is what validate prints as JSON.
type validated struct {
	Version  int       `json:"version"`
	Valid    bool      `json:"valid"`
	Problems []problem `json:"problems"`
	Warnings []string  `json:"warnings"`
}

// problem is one mistake; At is the path of keys, empty if it is about the whole.
type problem struct {
	At      string `json:"at"`
	Message string `json:"message"`
}

func runValidate(cmd *cobra.Command, output format, name string) error {
	text, err := readAtMost(cmd, name, maxConfig)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	result := validated{Version: 1, Problems: []problem{}, Warnings: []string{}}
	c, err := config.NewLoader().LoadFile(cmd.Context(), string(text))
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		for _, p := range problems {
			result.Problems = append(result.Problems, problem{p.Path, p.Message})
		}
	case err != nil:
		return err
	default:
		result.Valid = true
		result.Warnings = append(result.Warnings, c.Warnings...)
	}
	if err := printValidated(cmd, output, &result, problems); err != nil {
		return err
	}
	if !result.Valid {
		return &exitError{code: exitRefused}
	}
	return nil
}

func printValidated(cmd *cobra.Command, output format, r *validated, problems config.Problems) error {
	if output == outputJSON {
		return printJSON(cmd, r)
	}
	var text strings.Builder
	for _, p := range problems {
		text.WriteString(p.String() + "\n")
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
