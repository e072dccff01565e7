package list

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// signFlags are the flags of list sign and list verify.
type signFlags struct {
	key       string
	signature string // default: the list's path with .sig
	listID    string
}

// signatureOf returns the path of a list's signature.
func (f *signFlags) signatureOf(name string) (string, error) {
	switch {
	case f.signature == "-":
		return "", cli.UsageError("a signature is in a file: it cannot be the standard input or output")
	case f.signature != "":
		return f.signature, nil
	case name == "-":
		return "", cli.UsageError("the list is from the standard input: say where its signature is, with --signature")
	}
	return name + ".sig", nil
}

func newSign(output *cli.Format) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign LIST",
		Short: "Sign a list for the source http",
		Long: `sign signs a LIST with a private key, and writes the signature to LIST.sig, or where --signature
says. "-" is the standard input. It prints the ID of the key, which is the SHA-256 of the public key in DER.

LIST is in JSON, and has serial, expires and list: a server takes no signed list without them. sign writes
no signature that a server would refuse. Publish the list and its signature together, unchanged: the
signature is over every byte of the list.

The key is an Ed25519 key, or an ECDSA key on the curve P-256, as these commands write it:

  openssl genpkey -algorithm ed25519 -out list.key
  openssl pkey -in list.key -pubout -out list.pub

Exit code 3 says that a server would refuse the list.`,
		Example: cli.Examples(
			"tpm-attestor list sign tpm.json --key list.key",
			"tpm-attestor list sign - --key list.key --signature tpm.json.sig < tpm.json",
		),
		Args: cli.OneArgument("the list"),
		RunE: func(cmd *cobra.Command, args []string) error { return runSign(cmd, &f, *output, args[0]) },
	}
	cmd.ValidArgsFunction = cli.Files
	cmd.Flags().StringVar(&f.key, "key", "", "the private key, a PEM file (required)")
	cmd.Flags().StringVar(&f.signature, "signature", "", "the file to write (default LIST.sig)")
	cli.Complete(cmd, cli.Files, "key", "signature")
	return cmd
}

// signed is the JSON output of list sign and list verify.
type signed struct {
	Version int    `json:"version"`
	File    string `json:"file"`
	headerJSON
	Entries   int               `json:"entries"`
	Signature string            `json:"signature"`
	Valid     bool              `json:"valid"`
	KeyID     string            `json:"key_id,omitempty"`
	Mistakes  []finding.Mistake `json:"mistakes"`
}

func runSign(cmd *cobra.Command, f *signFlags, output cli.Format, name string) error {
	to, err := f.signatureOf(name)
	if err == nil && f.key == "" {
		err = cli.UsageError("name the private key, with --key")
	}
	if err != nil {
		return err
	}
	text, err := smallfile.Read(f.key, signature.MaxPrivateKey)
	if err != nil {
		return fmt.Errorf("read the private key: %w", err)
	}
	key, err := signature.ParsePrivateKey(text)
	if err != nil {
		return fmt.Errorf("the private key %q: %w", f.key, err)
	}
	id, err := keyID(key.Public())
	if err != nil {
		return err
	}
	data, err := input.Read(name, cmd.InOrStdin(), maxList)
	if err != nil {
		return fmt.Errorf("read the list: %w", err)
	}
	result := signed{Version: 1, File: name, Signature: to, Mistakes: []finding.Mistake{}}
	d, err := signable(cmd, name, data)
	if err != nil {
		return result.refuse(cmd, output, err)
	}
	sig, err := signature.Sign(key, data)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(to, func(w io.Writer) error {
		_, err := w.Write(sig)
		return err
	}); err != nil {
		return fmt.Errorf("write the signature: %w", err)
	}
	return result.print(cmd, output, d, id)
}

// signable loads a list that is to be signed. The error is a finding.MistakesError if a server would refuse
// the list even with a valid signature.
func signable(cmd *cobra.Command, name string, data []byte) (document, error) {
	d, err := loadAsServer(cmd.Context(), name, data, ekhashes.Options{JSON: true})
	if err != nil {
		return nil, err
	}
	signing := list.Signing{Name: d.Header().Name}
	if err := signing.Check(d.Header()); err != nil {
		return nil, finding.MistakesError{{File: name, Problem: err.Error()}}
	}
	if signing.Name == "" {
		return nil, finding.MistakesError{{
			File: name,
			Problem: `a signed list needs the field "list", so that it cannot be swapped for another: ` +
				"name it as list_id says",
		}}
	}
	return d, nil
}

// keyID returns the ID of a public key, in hex.
func keyID(public any) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	keys, err := signature.ParsePublicKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		return "", err
	}
	id := keys[0].ID()
	return hex.EncodeToString(id[:]), nil
}

// refuse reports the mistakes in err, and returns the exit code as an error. Any other err it returns as it is.
func (r *signed) refuse(cmd *cobra.Command, output cli.Format, err error) error {
	mistakes, ok := errors.AsType[finding.MistakesError](err)
	if !ok {
		return err
	}
	if output == cli.JSON {
		r.Mistakes = mistakes
		if err := cli.PrintJSON(cmd, r); err != nil {
			return err
		}
		return cli.Exit(cli.ExitRefused, nil)
	}
	if err := printMessages(cmd, "", []finding.MistakesError{mistakes}); err != nil {
		return err
	}
	return cli.Exit(cli.ExitRefused, errors.New("no server would take this list with this signature"))
}

// print says what was signed, or verified.
func (r *signed) print(cmd *cobra.Command, output cli.Format, d document, id string) error {
	r.headerJSON, r.Entries, r.Valid, r.KeyID = headerToJSON(d.Header()), d.Len(), true, id
	if output == cli.JSON {
		return cli.PrintJSON(cmd, r)
	}
	return cli.PrintText(cmd, fmt.Sprintf("%s: %s, %s\nsignature: %s\nkey ID: %s\n",
		r.File, cli.Entries(r.Entries), words(d.Header()), r.Signature, r.KeyID))
}

func newVerify(output *cli.Format) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "verify LIST",
		Short: "Verify the signature of a list",
		Long: `verify checks a LIST and its signature as the source http does: the signature in LIST.sig, or where
--signature says, by one of the public keys in --public-key, the serial, the expiry and the name of the
list. "-" is the standard input. It prints the ID of the key that has signed.

Without --list-id, any name of the list will do. A server has a list_id: give it here, too.

Exit code 3 says that a server would refuse the list, 4 that the list, its signature or the public keys
could not be read.`,
		Example: cli.Examples(
			"tpm-attestor list verify tpm.json --public-key list.pub --list-id fleet",
			"tpm-attestor list verify tpm.json --public-key list.pub --signature tpm.json.sig.b64",
		),
		Args: cli.OneArgument("the list"),
		RunE: func(cmd *cobra.Command, args []string) error { return runVerify(cmd, &f, *output, args[0]) },
	}
	cmd.ValidArgsFunction = cli.Files
	cmd.Flags().StringVar(&f.key, "public-key", "", "a PEM file of one or more public keys, as "+
		"public_key_path (required)")
	cmd.Flags().StringVar(&f.signature, "signature", "", "the signature (default LIST.sig)")
	cmd.Flags().StringVar(&f.listID, "list-id", "", "the name that the list must give itself, as list_id")
	cli.Complete(cmd, cli.Files, "public-key", "signature")
	cli.Complete(cmd, cli.Nothing, "list-id")
	return cmd
}

func runVerify(cmd *cobra.Command, f *signFlags, output cli.Format, name string) error {
	at, err := f.signatureOf(name)
	if err == nil && f.key == "" {
		err = cli.UsageError("name the public keys, with --public-key")
	}
	if err != nil {
		return err
	}
	c, keys, err := f.readSigned(cmd, name, at)
	if err != nil {
		return cli.Exit(cli.ExitCannotTell, err)
	}
	result := signed{Version: 1, File: name, Signature: at, Mistakes: []finding.Mistake{}}
	id, err := keys.Verify(c.Data, c.Signature)
	if err != nil {
		return result.refuse(cmd, output, finding.MistakesError{{File: at, Problem: err.Error()}})
	}
	signing := &list.Signing{KeyPath: f.key, Name: f.listID}
	if f.listID == "" {
		d, err := loadAsServer(cmd.Context(), name, c.Data, ekhashes.Options{JSON: true})
		if err != nil {
			return result.refuse(cmd, output, err)
		}
		signing.Name = d.Header().Name
	}
	d, err := loadSigned(cmd.Context(), name, c, ekhashes.Options{JSON: true}, signing)
	if err != nil {
		return result.refuse(cmd, output, err)
	}
	return result.print(cmd, output, d, hex.EncodeToString(id[:]))
}

// readSigned reads a list, its signature and the public keys.
func (f *signFlags) readSigned(cmd *cobra.Command, name, at string) (list.Copy, signature.PublicKeys, error) {
	c := list.Copy{At: time.Now()}
	text, err := smallfile.Read(f.key, signature.MaxPublicKeys)
	if err != nil {
		return c, nil, fmt.Errorf("read the public keys: %w", err)
	}
	keys, err := signature.ParsePublicKeys(text)
	if err != nil {
		return c, nil, fmt.Errorf("the public keys in %q: %w", f.key, err)
	}
	if c.Signature, err = input.Read(at, nil, signature.MaxSignature); err != nil {
		return c, nil, fmt.Errorf("read the signature: %w", err)
	}
	if c.Data, err = input.Read(name, cmd.InOrStdin(), maxList); err != nil {
		return c, nil, fmt.Errorf("read the list: %w", err)
	}
	return c, keys, nil
}
