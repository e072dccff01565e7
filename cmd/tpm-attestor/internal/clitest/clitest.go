// Package clitest helps to test commands: it runs a command, and makes files that several commands read.
package clitest

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
)

// Run runs a command line of a program that has only this command, and returns the exit code. args begins with the
// name of the command.
func Run(ctx context.Context, command cli.Maker, args []string, std cli.Streams) int {
	return cli.Run(ctx, cli.Root(&cobra.Command{Use: "tpm-attestor"}, command), args, std)
}

// FullDisk is a writer that always fails.
type FullDisk struct{}

// Write implements io.Writer.
func (FullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }
