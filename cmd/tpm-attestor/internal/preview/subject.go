package preview

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/ekfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A Subject is a machine about which a server's decision is asked.
type Subject struct {
	Evidence sources.Evidence
	// from is a file's name, "tpm", or empty if the machine was named by its EK hash.
	from    string
	keyType string // empty if only the EK hash is known
	// others is how many other EKs are in the file.
	others int
}

// Named returns the machine with the EK hash name, or the first machine in the file name, which may hold what the
// command ek reads, or just an EK hash. "-" is stdin.
func Named(name string, stdin io.Reader) (*Subject, error) {
	if hash, err := sources.ParseEKHash(name); err == nil {
		return &Subject{Evidence: sources.Evidence{EKHash: hash, Incomplete: true}}, nil
	}
	content, err := input.Read(name, stdin, ekfile.MaxSize)
	if os.IsNotExist(err) {
		return nil, cli.Exit(cli.ExitUsage, fmt.Errorf("%q is neither an EK hash, of 64 hex digits, nor a file", name))
	}
	if err != nil {
		return nil, fmt.Errorf("read the EK: %w", err)
	}
	if hash, err := sources.ParseEKHash(string(bytes.TrimSpace(content))); err == nil {
		return &Subject{from: name, Evidence: sources.Evidence{EKHash: hash, Incomplete: true}}, nil
	}
	l, err := ekfile.Parse(name, content)
	if err != nil {
		return nil, cli.Exit(cli.ExitUsage, fmt.Errorf("%s: %w", name, err))
	}
	s := &Subject{from: name, keyType: l.EKs[0].KeyType, Evidence: l.Evidence[0], others: len(l.EKs) - 1}
	s.Evidence.Chain = l.Chain
	s.Evidence.Incomplete = s.Evidence.Certificate == nil // the machine may have one
	return s, nil
}

// tpmFlags say which TPM is meant, and which EK in it.
type tpmFlags struct{ device, key string }

func (f *tpmFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.device, "device", "", "this machine's TPM: a path such as /dev/tpmrm0, or unix:/path for "+
		"the socket of a software TPM (default /dev/tpmrm0, else /dev/tpm0)")
	cmd.Flags().StringVar(&f.key, "ek-type", "auto", "the type of the endorsement key, as the agent's key ek: "+
		"auto, rsa2048, p256, p384 or rsa3072")
	cli.Complete(cmd, cli.Files, "device")
	cli.Complete(cmd, cli.OneOf("auto", "rsa2048", "p256", "p384", "rsa3072"), "ek-type")
}

// subject returns this machine, as its agent would describe it.
func (f *tpmFlags) subject(ctx context.Context, stderr io.Writer) (*Subject, error) {
	t, err := ekreport.Open(f.device, f.key, os.Getenv)
	if err != nil {
		return nil, cli.Exit(cli.ExitUsage, err)
	}
	p := cli.StartProgress(stderr, "asking the TPM", "")
	defer p.End()
	report, err := ekreport.Inspect(ctx, t)
	if err != nil {
		err = ekreport.ByFlags(err, map[string]string{"device": "--device", "ek": "--ek-type"})
		return nil, cli.Exit(cli.ExitCannotTell, err)
	}
	return subjectOf(report), nil
}

func subjectOf(r *tpm.Report) *Subject {
	s := &Subject{
		from: "tpm", keyType: string(r.EK.KeyType),
		Evidence: sources.Evidence{EKHash: r.EK.Hash, EK: r.EK.Public},
	}
	if c := r.EK.Certificate; c != nil {
		s.Evidence.Certificate, s.Evidence.Chain = c.Raw, r.Chain
	}
	return s
}
