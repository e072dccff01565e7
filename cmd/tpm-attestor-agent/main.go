// Tpm-attestor-agent contains two plugins of SPIRE Agent, both called "tpm": a node attestor and a key manager. If
// a person runs it, it prints the EK hash and the EK certificates of the machine's TPM; see its -help.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/selfinstall"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/serve"
)

// version is set by the linker: -ldflags "-X main.version=…".
var version string

const command = "tpm-attestor-agent"

const usage = `tpm-attestor-agent is SPIRE Agent's node attestor plugin "tpm". SPIRE starts it, as the
plugin_cmd of

  NodeAttestor "tpm" {
    plugin_cmd = "/usr/libexec/spire/plugins/tpm-attestor-agent"
    plugin_data {}
  }

It is also the KeyManager "tpm", which keeps the key of the agent's SVID in the TPM, with the same
plugin_cmd; see docs/plugin_agent_keymanager_tpm.md.

To enrol a machine, run it by hand, as a user with access to the TPM:

  tpm-attestor-agent -ek                 print the EK hash and the EK certificates in the TPM
  tpm-attestor-agent -hash               print just the EK hash, for scripts
  tpm-attestor-agent -pem                print the EK and all certificates in the TPM as PEM, for
                                         tpm-attestor certificates fill
  tpm-attestor-agent -install DIR        copy this program into a folder, for an init container
  tpm-attestor-agent -version            print the version

With -ek, -hash and -pem, use the same options as in the plugin's configuration:

  -device string   the TPM: a path such as /dev/tpmrm0, or unix:/path for the socket of a
                   software TPM (default: /dev/tpmrm0, else /dev/tpm0)
  -key string      the type of the endorsement key, as the key ek: auto, rsa2048, p256, p384
                   or rsa3072 (default: auto)

The configuration has one more key: ak, the type of the attestation key, which is auto, p256 or rsa2048
(default: auto, which is p256 if the TPM signs with ECC).

Passwords of the TPM's hierarchies, if a site has set them, are read from the environment:
TPM_ENDORSEMENT_PASSWORD and TPM_OWNER_PASSWORD.
`

func main() {
	if len(os.Args) < 2 {
		attestor, keys := agent.New(), agent.NewKeyManager()
		os.Exit(serve.Main(os.Stderr, serve.Plugin{
			Name:    command,
			Version: buildinfo.Version(version),
			Server:  nodeattestorv1.NodeAttestorPluginServer(attestor),
			Config:  configv1.ConfigServiceServer(attestor),
			Closer:  attestor,
		}, serve.Plugin{
			Name:    command,
			Version: buildinfo.Version(version),
			Server:  keymanagerv1.KeyManagerPluginServer(keys),
			Config:  configv1.ConfigServiceServer(keys),
			Closer:  keys,
		}))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run runs a command line. It returns exit code 1 if the command has failed, and 2 if the
// command line is wrong.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	showVersion := flags.Bool("version", false, "")
	showEK := flags.Bool("ek", false, "")
	showHash := flags.Bool("hash", false, "")
	showPEM := flags.Bool("pem", false, "")
	folder := flags.String("install", "", "")
	device := flags.String("device", "", "")
	key := flags.String("key", "auto", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return write(stdout, stderr, usage)
	case err != nil:
		return misused(stderr, err)
	}
	if *showVersion {
		return write(stdout, stderr, command+" "+buildinfo.Version(version)+"\n")
	}
	if countTrue(*showEK, *showHash, *showPEM, *folder != "") != 1 || flags.NArg() > 0 {
		return misused(stderr, errors.New("give one of -ek, -hash, -pem, -install and -version"))
	}
	if *folder != "" {
		return install(*folder, stdout, stderr)
	}
	t, err := ekreport.Open(*device, *key, getenv)
	if err != nil {
		return misused(stderr, err)
	}
	report, err := ekreport.Inspect(ctx, t)
	if err != nil {
		fmt.Fprintln(stderr, ekreport.ByFlags(err, map[string]string{"device": "-device", "ek": "-key"}))
		return 1
	}
	switch {
	case *showHash:
		return write(stdout, stderr, hex.EncodeToString(report.EK.Hash[:])+"\n")
	case *showPEM:
		text, err := ekreport.PEM(report)
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		return write(stdout, stderr, text)
	}
	return write(stdout, stderr, ekreport.Text(ekreport.FromTPM(report)))
}

// install copies this program into a folder and returns the exit code.
func install(folder string, stdout, stderr io.Writer) int {
	path, err := selfinstall.Into(folder, command)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return write(stdout, stderr, fmt.Sprintf("installed %s %s as %s\n", command, buildinfo.Version(version), path))
}

// misused reports a mistake on the command line, and returns the exit code.
func misused(stderr io.Writer, err error) int {
	fmt.Fprintf(stderr, "%v (see %s -help)\n", err, command)
	return 2
}

func countTrue(all ...bool) int {
	n := 0
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// write writes the command's output and returns the exit code. A failed write is a failure of the command: a script
// that reads the output must not believe that the command succeeded.
func write(stdout, stderr io.Writer, text string) int {
	if _, err := io.WriteString(stdout, text); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}
