// Tpm-attestor-server contains two plugins of SPIRE Server: the node attestor "tpm" and the credential composer
// "tpm". If a person runs it, it prints its version or checks a configuration; see its -help.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	composerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/selfinstall"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/serve"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/composer"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// version is set by -ldflags "-X main.version=…".
var version string //nolint:gochecknoglobals // the linker needs a variable

const command = "tpm-attestor-server"

const usage = `tpm-attestor-server is the server side of the SPIRE node attestor "tpm". SPIRE
starts it, as the plugin_cmd of

    NodeAttestor "tpm" {
        plugin_cmd = "/usr/libexec/spire/plugins/tpm-attestor-server"
        plugin_data {
            source "hash_dir" "machines" { path = "/srv/tpm/hashes" }
        }
    }

and, if svid_key is configured there, as the plugin_cmd of

    CredentialComposer "tpm" {
        plugin_cmd = "/usr/libexec/spire/plugins/tpm-attestor-server"
        plugin_data { socket = "/run/spire/tpm/svid.sock" }
    }

By hand:

    tpm-attestor-server -validate FILE    check a configuration: SPIRE Server's, or
                                          just the contents of plugin_data, in HCL
                                          or JSON ("-" reads standard input)
    tpm-attestor-server -install DIR      copy this program into a folder, for an init
                                          container
    tpm-attestor-server -version          print the version
    tpm-attestor-server -help             print this text

What verifies EK certificates at sites without Internet access is fetched by
tpm-attestor certificates fill.
`

func main() {
	code, plugin := run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if !plugin {
		os.Exit(code)
	}
	p, c := server.New(), composer.New()
	p.Version = buildinfo.Version(version)
	os.Exit(serve.Main(os.Stderr, serve.Plugin{
		Name:    command,
		Version: p.Version,
		Server:  nodeattestorv1.NodeAttestorPluginServer(p),
		Config:  configv1.ConfigServiceServer(p),
		Closer:  p,
	}, serve.Plugin{
		Name:    command,
		Version: p.Version,
		Server:  composerv1.CredentialComposerPluginServer(c),
		Config:  configv1.ConfigServiceServer(c),
		Closer:  c,
	}))
}

// run runs a command line and returns the exit code. If there is no command line, plugin is true, and the caller
// serves the plugin.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) (code int, plugin bool) {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	showVersion := flags.Bool("version", false, "")
	file := flags.String("validate", "", "")
	folder := flags.String("install", "", "")
	switch err := flags.Parse(args); {
	case slices.ContainsFunc(args, fillsMirror):
		return misused(stderr, "-fill-mirror has moved: run tpm-attestor certificates fill FOLDER FILE..."), false
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0, false
	case err != nil:
		return misused(stderr, "%v", err), false
	case flags.NArg() > 0:
		return misused(stderr, "unexpected argument %q", flags.Arg(0)), false
	case *showVersion:
		fmt.Fprintln(stdout, command, buildinfo.Version(version))
		return 0, false
	case *folder != "":
		return install(*folder, stdout, stderr), false
	case *file != "":
		return validate(*file, stdin, stdout, stderr), false
	}
	return 0, true
}

// install copies this program into a folder and returns the exit code.
func install(folder string, stdout, stderr io.Writer) int {
	path, err := selfinstall.Into(folder, command)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintf(stdout, "installed %s %s as %s\n", command, buildinfo.Version(version), path)
	return 0
}

// fillsMirror reports whether an argument is the flag -fill-mirror, which earlier releases
// had.
func fillsMirror(arg string) bool {
	name, _, _ := strings.Cut(arg, "=")
	return name == "-fill-mirror" || name == "--fill-mirror"
}

// misused reports a mistake on the command line, and returns the exit code.
func misused(stderr io.Writer, format string, args ...any) int {
	fmt.Fprintf(stderr, format+" (see "+command+" -help)\n", args...)
	return 2
}

// maxConfig is more than the size of the largest configuration that is accepted, in bytes.
const maxConfig = 2 << 20

// validate checks a configuration as SPIRE's call to Validate does. If the file does not name the trust domain,
// validate skips the checks that depend on it. It returns the exit code: 0 if the configuration is valid, 1 if it
// is not, 2 if it cannot be read.
func validate(name string, stdin io.Reader, stdout, stderr io.Writer) int {
	text, err := input.Read(name, stdin, maxConfig)
	if err != nil {
		fmt.Fprintf(stderr, "read the configuration: %v\n", err)
		return 2
	}
	c, err := config.NewLoader().LoadFile(context.Background(), string(text))
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		for _, p := range problems {
			fmt.Fprintln(stderr, p)
		}
		return 1
	case err != nil:
		fmt.Fprintln(stderr, err)
		return 1
	}
	for _, w := range c.Warnings {
		fmt.Fprintln(stderr, "warning: "+w)
	}
	fmt.Fprintln(stdout, "valid")
	return 0
}
