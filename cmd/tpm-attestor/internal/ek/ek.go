// Package ek is the command that shows EKs, of this machine or in files.
package ek

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/ekfile"
)

// flags are the flags of the command ek.
type flags struct {
	device, key     string
	onlyHash, asPEM bool
}

// New returns the command ek.
func New(output *cli.Format) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "ek [FILE...]",
		Short: "Show EK hashes, key types and EK certificates",
		Long: `ek shows by what a machine is enrolled: the EK hash, the type of the key and the EK certificates.

Without a FILE, it asks this machine's TPM, as a user with access to it, and leaves nothing in the TPM.
Passwords of the TPM's hierarchies, if a site has set them, are read from the environment:
TPM_ENDORSEMENT_PASSWORD and TPM_OWNER_PASSWORD.

A FILE holds a public key or EK certificates in PEM, an EK certificate in DER as it is read from a TPM,
or a TPMT_PUBLIC or TPM2B_PUBLIC as other tools write it. "-" is the standard input.`,
		Example: cli.Examples(
			"tpm-attestor ek",
			"tpm-attestor ek --hash >> /srv/lists/machines.txt",
			"tpm-attestor ek --pem > machine.pem",
			"tpm-attestor ek --output json machine.pem",
		),
		RunE: func(cmd *cobra.Command, args []string) error { return run(cmd, f, *output, args) },
	}
	cmd.ValidArgsFunction = cli.Files
	cmd.Flags().StringVar(&f.device, "device", "", "the TPM: a path such as /dev/tpmrm0, or unix:/path for the "+
		"socket of a software TPM (default /dev/tpmrm0, else /dev/tpm0)")
	cmd.Flags().StringVar(&f.key, "ek-type", "auto", "the type of the endorsement key, as the agent's key ek: "+
		"auto, rsa2048, p256, p384 or rsa3072")
	cmd.Flags().BoolVar(&f.onlyHash, "hash", false, "print just the EK hashes, a line each")
	cmd.Flags().BoolVar(&f.asPEM, "pem", false, "print this TPM's EK and all its certificates as PEM, "+
		"for tpm-attestor certificates fill")
	cli.Complete(cmd, cli.Files, "device")
	cli.Complete(cmd, cli.OneOf("auto", "rsa2048", "p256", "p384", "rsa3072"), "ek-type")
	return cmd
}

func run(cmd *cobra.Command, f flags, output cli.Format, files []string) error {
	if f.onlyHash && f.asPEM || (f.onlyHash || f.asPEM) && output == cli.JSON {
		return cli.UsageError("choose one of --hash, --pem and --output json")
	}
	if len(files) > 0 && (f.asPEM || cmd.Flags().Changed("device") || cmd.Flags().Changed("ek-type")) {
		return cli.UsageError("--pem, --device and --ek-type are for the TPM of this machine: leave them out, " +
			"or the files")
	}
	if len(files) == 0 {
		return runTPM(cmd, f, output)
	}
	var eks []ekreport.EK
	for _, name := range files {
		content, err := input.Read(name, cmd.InOrStdin(), ekfile.MaxSize)
		if err != nil {
			return fmt.Errorf("read the EK: %w", err)
		}
		found, err := ekfile.Parse(name, content)
		if err != nil {
			return cli.Exit(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
		}
		eks = append(eks, found.EKs...)
	}
	return printEKs(cmd, f, output, eks)
}

// runTPM shows the EK of this machine's TPM.
func runTPM(cmd *cobra.Command, f flags, output cli.Format) error {
	t, err := ekreport.Open(f.device, f.key, os.Getenv)
	if err != nil {
		return cli.Exit(cli.ExitUsage, err)
	}
	p := cli.StartProgress(cmd.ErrOrStderr(), "asking the TPM", "")
	report, err := ekreport.Inspect(cmd.Context(), t)
	p.End()
	if err != nil {
		return ekreport.ByFlags(err, map[string]string{"device": "--device", "ek": "--ek-type"})
	}
	if f.asPEM {
		text, err := ekreport.PEM(report)
		if err != nil {
			return err
		}
		return cli.PrintText(cmd, text)
	}
	return printEKs(cmd, f, output, []ekreport.EK{ekreport.FromTPM(report)})
}

func printEKs(cmd *cobra.Command, f flags, output cli.Format, eks []ekreport.EK) error {
	if output == cli.JSON {
		return cli.PrintJSON(cmd, struct {
			Version int           `json:"version"`
			EKs     []ekreport.EK `json:"eks"`
		}{1, eks})
	}
	var text strings.Builder
	for i, ek := range eks {
		switch {
		case f.onlyHash:
			text.WriteString(ek.Hash + "\n")
			continue
		case i > 0:
			text.WriteString("\n")
		}
		text.WriteString(ekreport.Text(ek))
	}
	return cli.PrintText(cmd, text.String())
}
