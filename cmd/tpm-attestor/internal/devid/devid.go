// Package devid has the commands that give a machine a DevID: request runs on the machine, and issue at the issuer.
package devid

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
)

// New returns the command devid.
func New(output *cli.Format) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "devid",
		Short: "Give a machine a DevID: a certificate for a key in its TPM",
		Long: `devid gives a machine an LDevID (IEEE 802.1AR): a certificate of the organization's own CA, whose key is
in the machine's TPM. Three files go between the machine and the issuer, in any way, since none of them is a
secret:

  machine  devid request FOLDER                             makes the key   -> request.json
  issuer   devid issue challenge request.json               knows the TPM?  -> challenge.json
  machine  devid request FOLDER --challenge challenge.json  proves the key  -> answer.json
  issuer   devid issue certificate answer.json              signs           -> devid.pem`,
		Example: cli.Examples(
			"tpm-attestor devid request /etc/tpm",
			"tpm-attestor devid issue challenge request.json --config server.conf --state laptop-17.state",
		),
	}, newRequest(output), newIssue(output))
}

// The files that a machine and an issuer exchange. Each is a message of an attestation with a few more members,
// which the reader of the message ignores.
const (
	typeRequest   = "devid request"
	typeChallenge = "devid challenge"
	typeAnswer    = "devid answer"
	typeState     = "devid state"
)

// maxExchanged is more than the size of the largest file that is exchanged: an answer with an event log.
const maxExchanged = 512 << 10

// exchanged are the members that a file has besides those of its message.
type exchanged struct {
	Version int    `json:"version"`
	Type    string `json:"type"`
	// CSR is in a request: a certificate request (PKCS #10) in DER, or nothing.
	CSR []byte `json:"csr,omitempty"`
}

// wrap returns a message as a file of the given type.
func (e exchanged) wrap(typ string, message []byte) ([]byte, error) {
	e.Version, e.Type = 1, typ
	head, err := json.Marshal(e)
	if err != nil || len(message) < 2 || message[0] != '{' {
		return nil, errors.Join(err, errors.New("the message is no JSON object"))
	}
	head[len(head)-1] = ',' // instead of the closing brace
	return append(append(head, message[1:]...), '\n'), nil
}

// readExchanged reads a file of the given type.
func readExchanged(cmd *cobra.Command, typ, name string) ([]byte, error) {
	content, err := input.Read(name, cmd.InOrStdin(), maxExchanged)
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", typ, err)
	}
	if _, err := unwrap(typ, content); err != nil {
		return nil, cli.Exit(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	return content, nil
}

func unwrap(typ string, content []byte) (*exchanged, error) {
	e := new(exchanged)
	switch err := json.Unmarshal(content, e); {
	case err != nil:
		return nil, fmt.Errorf("it is no %s: %w", typ, err)
	case e.Type != typ:
		return nil, fmt.Errorf("it is no %s: its type is %q", typ, e.Type)
	case e.Version != 1:
		return nil, fmt.Errorf("a %s of version %d: this program knows version 1", typ, e.Version)
	}
	return e, nil
}

// writeExchanged writes a file, which may replace an earlier one. It does not write through a link that another
// user controls.
func writeExchanged(typ, path string, content []byte) error {
	err := atomicfile.Write(path, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	if err != nil {
		return fmt.Errorf("write the %s: %w", typ, err)
	}
	return nil
}

// create makes a file. It does not replace an existing one.
func create(what, path string, perm fs.FileMode, content []byte) error {
	err := atomicfile.Create(path, perm, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write the %s: %s is there already: name another file, or remove it", what, path)
	}
	if err != nil {
		return fmt.Errorf("write the %s: %w", what, err)
	}
	return nil
}

// exists reports whether something is at a path.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
