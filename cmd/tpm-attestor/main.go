// Tpm-attestor is the command-line tool for operators of the SPIRE node attestor "tpm"; see
// its --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/root"
)

// version is set by -ldflags "-X main.version=…".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, args []string, std cli.Streams) int {
	return cli.Run(ctx, root.New(buildinfo.Version(version)), args, std)
}
