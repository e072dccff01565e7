// Package cli is what the commands of tpm-attestor have in common: how they are put together and run, how they
// print, and their exit codes.
//
// Each command is a package beside this one. It exports one function, New, which is a Maker. Its RunE reads
// cmd.InOrStdin, prints its data with PrintJSON or PrintText and everything else on cmd.ErrOrStderr, and returns an
// error: one from Exit or UsageError for an exit code of its own, or any other for ExitFailed. Commands never end
// the process, and never use os.Stdin, os.Stdout or os.Stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// The exit codes of all commands. 0 means done, valid, equal or admitted.
const (
	ExitFailed     = 1 // the command failed
	ExitUsage      = 2 // the command line or its input is wrong
	ExitRefused    = 3 // refused, invalid or different
	ExitCannotTell = 4 // something did not answer, or could not be read
)

// MaxConfig is more than the size of the largest configuration that is accepted, in bytes.
const MaxConfig = 2 << 20

// Streams are a program's standard streams. Data goes to Out, everything else to Err.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// An exitError ends the program with an exit code. Its text is empty if the command has
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

// Exit returns an error that ends the program with an exit code. err is what the program prints, or nil if the
// command has printed everything already.
func Exit(code int, err error) error { return &exitError{code, err} }

// UsageError returns the error for a wrong command line, for ExitUsage.
func UsageError(format string, args ...any) error {
	return Exit(ExitUsage, fmt.Errorf(format, args...))
}

// A Maker makes a command. *output is the value of --output. It is set only when the command runs.
type Maker func(output *Format) *cobra.Command

// Root adds these commands and the flag --output to root, and returns root. Run prints the errors of root.
func Root(root *cobra.Command, commands ...Maker) *cobra.Command {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return UsageError("%w", err) })
	output := Table
	root.PersistentFlags().VarP(&output, "output", "o", "how data is printed: table, for people, or json")
	Complete(root, OneOf(string(Table), string(JSON)), "output")
	made := make([]*cobra.Command, len(commands))
	for i, command := range commands {
		made[i] = command(&output)
	}
	return Group(root, made...)
}

// Group adds subcommands to cmd, which has no action of its own, and returns cmd. Without a subcommand, cmd prints
// its help.
func Group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	var choose strings.Builder
	for i, c := range commands {
		switch i {
		case 0:
		case len(commands) - 1:
			choose.WriteString(" or ")
		default:
			choose.WriteString(", ")
		}
		choose.WriteString(c.Name())
	}
	cmd.AddCommand(commands...)
	cmd.Args, cmd.ValidArgsFunction = cobra.ArbitraryArgs, Nothing
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return UsageError("%q is not a command: choose %s", args[0], &choose)
		}
		return cmd.Help()
	}
	return cmd
}

// Run runs a command line of a program that Root has made, and returns the exit code. It prints an error on
// standard error, and after a wrong command line also how to get help.
func Run(ctx context.Context, root *cobra.Command, args []string, std Streams) int {
	root.SetIn(std.In)
	root.SetOut(std.Out)
	root.SetErr(std.Err)
	root.SetArgs(args)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := ExitFailed
	if e, ok := errors.AsType[*exitError](err); ok {
		code = e.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(std.Err, "%s: %s\n", ran.CommandPath(), text)
	}
	if code == ExitUsage {
		fmt.Fprintf(std.Err, "See %s --help.\n", ran.CommandPath())
	}
	return code
}

// OneArgument requires exactly one argument. what is its name in the error, such as "the configuration".
func OneArgument(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return UsageError("name %s", what)
		case 1:
			return nil
		}
		return UsageError("unexpected argument %q", args[1])
	}
}

// AtLeastOne requires one argument or more. what is their name in the error.
func AtLeastOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return UsageError("name %s", what)
		}
		return nil
	}
}
