// Package certificates has the commands about certificates that are fetched from TPM manufacturers.
package certificates

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
)

// New returns the command certificates.
func New(output *cli.Format) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "certificates",
		Short: "Prepare the certificates that servers without Internet access need",
		Long: `certificates prepares what verifies EK certificates for servers that do not ask the manufacturers
themselves.`,
		Example: cli.Examples(
			"tpm-attestor certificates fill /srv/mirror --config server.conf machines/*.pem",
		),
	}, newFill(output))
}

// fillFlags are the flags of certificates fill.
type fillFlags struct {
	config          string
	hosts, services []string
	noCRLs, force   bool
}

func newFill(output *cli.Format) *cobra.Command {
	var f fillFlags
	cmd := &cobra.Command{
		Use:   "fill FOLDER FILE...",
		Short: "Fetch what verifies the machines' EK and DevID certificates into a folder",
		Long: `fill fetches into FOLDER what servers without Internet access need to verify the EK certificates of the
machines in each FILE, as printed by tpm-attestor ek --pem ("-" is the standard input): certificates that
TPMs do not carry, their issuers and CRLs. A FILE may also be the certificate of a DevID, which a source
devid has to verify, or of a CA that cannot be fetched. A web server with FOLDER as its root is what
mirror_url expects.

Hosts and services may be given in the configuration, by flags, or both. CRLs are fetched if the
configuration uses them, or without --config. It can be run again and goes on where it stopped: issuers are
fetched again after 30 days, CRLs after an hour.

Exit code 1 says that something is missing; what was fetched is kept.`,
		Example: cli.Examples(
			"tpm-attestor certificates fill /srv/mirror --config server.conf machines/*.pem",
			"tpm-attestor certificates fill /srv/mirror --aia-host pki.infineon.com machine.pem",
		),
		Args: func(_ *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return cli.UsageError("name the folder")
			case 1:
				return cli.UsageError("name the machines' files, as printed by tpm-attestor ek --pem")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runFill(cmd, f, *output, args[0], args[1:]) },
	}
	cmd.ValidArgsFunction = func(
		cmd *cobra.Command, args []string, begun string,
	) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return cli.Folders(cmd, args, begun)
		}
		return cli.Files(cmd, args, begun)
	}
	cmd.Flags().StringVar(&f.config, "config", "", "the servers' configuration: SPIRE Server's, or just the "+
		"contents of plugin_data")
	cmd.Flags().StringArrayVar(&f.hosts, "aia-host", nil, "an entry of the key aia_hosts; repeatable")
	cmd.Flags().StringArrayVar(&f.services, "ek-certificate-url", nil,
		"VENDOR=URL, an entry of the key ek_certificate_urls; repeatable")
	cmd.Flags().BoolVar(&f.noCRLs, "no-crl", false, "do not fetch revocation lists (CRLs)")
	cmd.Flags().BoolVar(&f.force, "force", false, "fetch everything again, even what is fresh")
	cli.Complete(cmd, cli.Files, "config")
	cli.Complete(cmd, cli.Nothing, "aia-host")
	cli.Complete(cmd, cli.BeginningWith("intel=", "amd="), "ek-certificate-url")
	return cmd
}

// filled is the JSON output of certificates fill.
type filled struct {
	Version int `json:"version"`
	EKs     int `json:"eks"`
	DevIDs  int `json:"devids"`
	Fetched int `json:"fetched"`
	Kept    int `json:"kept"`
	Missing int `json:"missing"`
}

func runFill(cmd *cobra.Command, f fillFlags, output cli.Format, folder string, files []string) error {
	cfg, err := f.mirrorConfig(cmd)
	if err != nil {
		return err
	}
	var machines mirror.Machines
	for _, name := range files {
		content, err := input.Read(name, cmd.InOrStdin(), mirror.MaxInput)
		if err == nil {
			err = machines.Read(content)
		}
		if err != nil {
			return cli.Exit(cli.ExitUsage, fmt.Errorf("read the machines in %s: %w", name, err))
		}
	}
	cfg.Folder, cfg.Force, cfg.CRLs = folder, f.force, cfg.CRLs && !f.noCRLs
	progress := cmd.OutOrStdout()
	if output == cli.JSON {
		progress = cmd.ErrOrStderr()
	}
	cfg.Progress = progress
	s, fault := mirror.Fill(cmd.Context(), cfg, &machines)
	if output == cli.JSON {
		err = cli.PrintJSON(cmd, filled{1, machines.Len(), machines.DevIDs(), s.Fetched, s.Kept, s.Missing})
	} else {
		what := fmt.Sprintf("%d EKs", machines.Len())
		if n := machines.DevIDs(); n > 0 {
			what += fmt.Sprintf(", %d DevIDs", n)
		}
		text := fmt.Sprintf("%s: %d fetched, %d kept, %d missing\n", what, s.Fetched, s.Kept, s.Missing)
		err = cli.PrintText(cmd, text)
	}
	switch {
	case fault != nil:
		return fmt.Errorf("fill the mirror: %w: run it again; what was fetched is kept", fault)
	case err != nil:
		return err
	case s.Missing > 0:
		return errors.New("the mirror is incomplete: see MISSING above and run it again; what was fetched is kept")
	}
	return nil
}

// mirrorConfig returns the hosts and services of the configuration and the flags together.
func (f *fillFlags) mirrorConfig(cmd *cobra.Command) (mirror.Config, error) {
	cfg := mirror.Config{CRLs: true}
	if f.config != "" {
		text, err := input.Read(f.config, cmd.InOrStdin(), cli.MaxConfig)
		if err != nil {
			return cfg, cli.Exit(cli.ExitUsage, fmt.Errorf("read the configuration: %w", err))
		}
		// Parse looks at no files that sources name: they are on the servers.
		c, err := config.NewLoader().Open(cmd.Context(), string(text)).Parse()
		if err != nil {
			return cfg, cli.Exit(cli.ExitUsage, fmt.Errorf("read the configuration: %w", err))
		}
		cfg = mirrored(c)
	}
	cfg.Hosts = append(cfg.Hosts, f.hosts...)
	for _, s := range f.services {
		name, base, found := strings.Cut(s, "=")
		if !found || name != "intel" && name != "amd" {
			return cfg, cli.UsageError("--ek-certificate-url %q: write intel=https://… or amd=https://…", s)
		}
		cfg.Services = append(cfg.Services, mirror.Service{Name: name, Base: base})
	}
	if len(cfg.Hosts) == 0 && len(cfg.Services) == 0 {
		return cfg, cli.UsageError("there is nowhere to fetch from: give --config with aia_hosts or " +
			"ek_certificate_urls, --aia-host or --ek-certificate-url")
	}
	return cfg, nil
}
