package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
)

// version is set by -ldflags "-X main.version=…".
var version string

// The exit codes of all commands. 0 means done, valid, equal or admitted.
const (
	exitFailed     = 1 // it could not be done
	exitUsage      = 2 // the command line or its input is wrong
	exitRefused    = 3 // refused, invalid or different
	exitCannotTell = 4 // what was asked did not answer, or could not be read
)

// streams are a command's standard streams. Data goes to out, everything else to err.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// An exitError ends the command with an exit code. Its text is empty if the command has
// printed everything already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError returns the error for a wrong command line.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, args []string, std streams) int {
	root := newRoot(std)
	root.SetArgs(args)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	if exit := (*exitError)(nil); errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(std.err, "%s: %s\n", ran.CommandPath(), text)
	}
	if code == exitUsage {
		fmt.Fprintf(std.err, "See %s --help.\n", ran.CommandPath())
	}
	return code
}

// newRoot returns the command tpm-attestor with all its subcommands.
func newRoot(std streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "tpm-attestor",
		Short: "Everything that is done by hand for the SPIRE node attestor \"tpm\"",
		Long: `tpm-attestor is for the operators of the SPIRE node attestor "tpm": it shows by what a machine
is enrolled, checks configurations, makes and checks lists of machines, and prepares the certificates that
servers need.

Data goes to standard output, everything else to standard error. Exit codes: 0 done, valid or equal,
1 failed, 2 the command line or its input was not understood, 3 refused, invalid or different,
4 cannot tell.`,
		Version:       buildinfo.Version(version),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("%q is not a command", args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetIn(std.in)
	root.SetOut(std.out)
	root.SetErr(std.err)
	root.SetVersionTemplate("tpm-attestor {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError("%w", err) })
	output := outputTable
	root.PersistentFlags().VarP(&output, "output", "o", "how data is printed: table, for people, or json")
	root.AddCommand(newEK(&output), newValidate(&output), newCheck(&output), newExplain(&output))
	root.AddCommand(newList(&output), newCertificates(&output), newBoot(&output), newDevID(&output), newDoctor(&output))
	return root
}

// format is the value of --output.
type format string

// The formats. The JSON has a "version". Within a version, members may be added, but none
// changes its meaning.
const (
	outputTable format = "table"
	outputJSON  format = "json"
)

func (f *format) String() string { return string(*f) }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case outputTable, outputJSON:
		*f = format(s)
		return nil
	}
	return errors.New("choose table or json")
}

// Type implements pflag.Value.
func (*format) Type() string { return "format" }

// printJSON prints a value on standard output. If it cannot be written, that is an error: a
// script must not take the command for successful.
func printJSON(cmd *cobra.Command, value any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// printText prints a text on standard output.
func printText(cmd *cobra.Command, text string) error {
	_, err := io.WriteString(cmd.OutOrStdout(), text)
	return err
}

// examples indents the examples of a command's help.
func examples(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }
