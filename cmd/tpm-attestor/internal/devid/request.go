package devid

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
)

// timeout limits the TPM's part of one command: a slow TPM makes an RSA key in minutes.
const timeout = 15 * time.Minute

// requestFlags are the flags of devid request.
type requestFlags struct {
	device, ek, key string
	handle          string
	csr             bool
	subject         []string
	challenge       string
}

func newRequest(output *cli.Format) *cobra.Command {
	var f requestFlags
	cmd := &cobra.Command{
		Use:   "request FOLDER",
		Short: "Make a DevID's key in the TPM, ask for a certificate, and prove that the key is in the TPM",
		Long: `request makes a key in this machine's TPM, as a user with access to it, and writes into FOLDER, which it
makes if there is none:

  devid.priv, devid.pub  the key, wrapped by the TPM: for the agent's block devid, and SPIRE's tpm_devid
  request.json           what devid issue challenge reads

With --challenge, it answers the issuer's challenge and writes answer.json, for devid issue certificate.

The key never leaves the TPM and does not stay in it either: the files are of use in this TPM alone. A key that
is in FOLDER already is used and never replaced, so the command may be run again, also after a restart.
request.json and answer.json are replaced.

Passwords are read from the environment: TPM_ENDORSEMENT_PASSWORD and TPM_OWNER_PASSWORD of the hierarchies,
TPM_DEVID_PASSWORD of the key, if it shall have one.

With --csr, the key also signs a certificate request (PKCS #10) for an existing CA, which devid issue
certificate --csr verifies and prints. Its subject is --subject, or else the EK hash as serialNumber.`,
		Example: cli.Examples(
			"tpm-attestor devid request /etc/tpm",
			"tpm-attestor devid request /etc/tpm --challenge challenge.json",
			"tpm-attestor devid request /etc/tpm --key-type rsa2048 --csr --subject CN=laptop-17",
		),
		Args: cli.OneArgument("the folder"),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := runRequest(cmd, &f, *output, args[0])
			return ekreport.ByFlags(err, map[string]string{"device": "--device", "ek": "--ek"})
		},
	}
	cmd.ValidArgsFunction = cli.Folders
	flags := cmd.Flags()
	flags.StringVar(&f.device, "device", "", "the TPM: a path such as /dev/tpmrm0, or unix:/path for the socket of "+
		"a software TPM (default /dev/tpmrm0, else /dev/tpm0)")
	flags.StringVar(&f.ek, "ek", "auto", "the type of the endorsement key, as the agent's key ek: "+
		"auto, rsa2048, p256, p384 or rsa3072")
	flags.StringVar(&f.key, "key-type", string(attestor.P256), "the type of the DevID's key: p256, p384, rsa2048, "+
		"rsa3072 or rsa4096, as far as the TPM can")
	flags.StringVar(&f.handle, "handle", "", "make the key persistent in the TPM, too, at this handle, "+
		"such as 0x81000010")
	flags.BoolVar(&f.csr, "csr", false, "add a certificate request for an existing CA")
	flags.StringArrayVar(&f.subject, "subject", nil, "an attribute of the certificate request's subject, such as "+
		"CN=laptop-17; may be repeated: CN, O, OU, C, L, ST, serialNumber")
	flags.StringVar(&f.challenge, "challenge", "", `the issuer's challenge, "-" for the standard input`)
	cli.Complete(cmd, cli.Files, "device", "challenge")
	cli.Complete(cmd, cli.OneOf("auto", "rsa2048", "p256", "p384", "rsa3072"), "ek")
	cli.Complete(cmd, cli.OneOf("p256", "p384", "rsa2048", "rsa3072", "rsa4096"), "key-type")
	cli.Complete(cmd, completeSubject, "subject")
	cli.Complete(cmd, cli.BeginningWith("0x810"), "handle")
	return cmd
}

// enrolment is a machine that asks for a DevID.
type enrolment struct {
	cmd    *cobra.Command
	tpm    *tpm.TPM
	folder string
	config tpm.DevIDConfig
	made   bool // this run has made the key
	*tpm.Attestation
}

func runRequest(cmd *cobra.Command, f *requestFlags, output cli.Format, folder string) error {
	keyType, err := f.check(cmd)
	if err != nil {
		return err
	}
	device, err := ekreport.Open(f.device, f.ek, os.Getenv)
	if err != nil {
		return cli.Exit(cli.ExitUsage, err)
	}
	folder, err = filepath.Abs(folder)
	if err != nil {
		return err
	}
	e := &enrolment{cmd: cmd, tpm: device, folder: folder, config: tpm.DevIDConfig{
		PrivPath: filepath.Join(folder, privName), PubPath: filepath.Join(folder, pubName),
		Password: os.Getenv("TPM_DEVID_PASSWORD"),
	}}
	if f.challenge != "" {
		return e.answer(f.challenge, output)
	}
	if err := e.makeKey(keyType); err != nil {
		return err
	}
	if err := e.begin(); err != nil {
		return err
	}
	if err := e.checkType(cmd.Flags().Changed("key-type"), keyType); err != nil {
		return err
	}
	if err := e.persist(f.handle); err != nil {
		return err
	}
	return e.request(f, output)
}

// check checks the flags, and returns the type of the DevID's key.
func (f *requestFlags) check(cmd *cobra.Command) (attestor.KeyType, error) {
	if f.challenge != "" {
		for _, other := range []string{"key-type", "handle", "csr", "subject"} {
			if cmd.Flags().Changed(other) {
				return "", cli.UsageError("--%s belongs to the request: leave it out, or --challenge", other)
			}
		}
	}
	if len(f.subject) > 0 && !f.csr {
		return "", cli.UsageError("--subject is of the certificate request: add --csr, or give it to " +
			"devid issue certificate")
	}
	if _, err := parseSubject(f.subject); err != nil {
		return "", err
	}
	if _, err := tpm.ParseHandle(f.handle); err != nil {
		return "", cli.UsageError("--handle: %w", err)
	}
	keyType, err := tpm.ParseDevIDKey(f.key)
	if err != nil {
		return "", cli.UsageError("--key-type: %w", err)
	}
	return keyType, nil
}

// use runs f, which uses the TPM, and shows progress meanwhile.
func (e *enrolment) use(doing string, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(e.cmd.Context(), timeout)
	defer cancel()
	p := cli.StartProgress(e.cmd.ErrOrStderr(), doing, "")
	err := tpm.Do(ctx, func() error { return f(ctx) })
	p.End()
	if err != nil && strings.Contains(err.Error(), "password") { // the error names keys of the agent's configuration
		cli.Note(e.cmd, "this command reads passwords from TPM_OWNER_PASSWORD, TPM_ENDORSEMENT_PASSWORD and "+
			"TPM_DEVID_PASSWORD")
	}
	return err
}

// makeKey makes the key and its files, if they do not exist.
func (e *enrolment) makeKey(keyType attestor.KeyType) error {
	p, err := openPair(e.folder)
	if err != nil {
		return err
	}
	defer p.close()
	if there, err := p.find(); there || err != nil {
		return err
	}
	var priv, pub []byte
	err = e.use("the TPM makes the key", func(ctx context.Context) (err error) {
		priv, pub, err = e.tpm.CreateDevID(ctx, keyType, e.config.Password)
		return err
	})
	if err != nil {
		return err
	}
	e.made = true
	return p.put(priv, pub)
}

func (e *enrolment) begin() error {
	return e.use("asking the TPM", func(ctx context.Context) (err error) {
		e.Attestation, err = e.tpm.BeginEnrolment(ctx, e.config)
		return err
	})
}

// checkType refuses an existing key that is not of the type that was asked for.
func (e *enrolment) checkType(asked bool, want attestor.KeyType) error {
	if got := e.DevIDKeyType(); asked && got != want {
		return cli.Exit(cli.ExitRefused, fmt.Errorf("the key in %s is of the type %s, not %s: "+
			"leave out --key-type, or name another folder", e.folder, got, want))
	}
	return nil
}

func (e *enrolment) persist(handle string) error {
	if handle == "" {
		return nil
	}
	number, err := tpm.ParseHandle(handle)
	if err != nil {
		return err
	}
	return e.use("the TPM keeps the key", func(ctx context.Context) error {
		return e.MakePersistent(ctx, number)
	})
}

// request writes the request.
func (e *enrolment) request(f *requestFlags, output cli.Format) error {
	message, err := attestor.NewProver(e.Claim, nil).Payload()
	if err != nil {
		return err
	}
	var with exchanged
	if f.csr {
		if with.CSR, err = e.certificateRequest(f.subject); err != nil {
			return err
		}
	}
	return e.write(output, typeRequest, "request.json", f.handle, with, message)
}

func (e *enrolment) certificateRequest(subject []string) ([]byte, error) {
	name, err := parseSubject(subject)
	if err != nil {
		return nil, err
	}
	if len(subject) == 0 {
		name.SerialNumber = hex.EncodeToString(e.EKHash[:])
	}
	san, err := hardwareName(e.EKHash[:])
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{Subject: name}
	template.ExtraExtensions = append(template.ExtraExtensions, san)
	var der []byte
	return der, e.use("the TPM signs the certificate request", func(ctx context.Context) (err error) {
		der, err = e.CertificateRequest(ctx, template)
		return err
	})
}

// answer answers a challenge.
func (e *enrolment) answer(name string, output cli.Format) error {
	challenge, err := readExchanged(e.cmd, typeChallenge, name)
	if err != nil {
		return err
	}
	if err := e.begin(); err != nil {
		return err
	}
	message, err := attestor.NewProver(e.Claim, e).Answer(challenge)
	if err != nil {
		return err
	}
	return e.write(output, typeAnswer, "answer.json", "", exchanged{}, message)
}

// Activate implements attestor.Activator.
func (e *enrolment) Activate(task *attestor.Activation) (*attestor.Activated, error) {
	if task.DevID == nil {
		return nil, errors.New("the challenge does not ask for the DevID: it is not from devid issue")
	}
	var done *attestor.Activated
	err := e.use("the TPM answers", func(ctx context.Context) (err error) {
		done, err = e.Attestation.Activate(ctx, task)
		return err
	})
	if err != nil {
		return nil, err
	}
	if task.EventLog {
		if done.EventLog, err = e.tpm.EventLog(); err != nil {
			cli.Note(e.cmd, "sending no event log, which the issuer has asked for: %v", err)
		}
	}
	return done, nil
}

// requested is the JSON output of devid request.
type requested struct {
	Version int    `json:"version"`
	EKHash  string `json:"ek_hash"`
	KeyType string `json:"key_type"`
	Made    bool   `json:"made"` // by this run
	Handle  string `json:"persistent_handle,omitempty"`
	Written string `json:"written"`
}

// write writes a file for the issuer, and says so.
func (e *enrolment) write(output cli.Format, typ, name, handle string, with exchanged, message []byte) error {
	content, err := with.wrap(typ, message)
	if err != nil {
		return err
	}
	path := filepath.Join(e.folder, name)
	if err := writeExchanged(typ, path, content); err != nil {
		return err
	}
	r := requested{
		Version: 1, EKHash: hex.EncodeToString(e.EKHash[:]), KeyType: string(e.DevIDKeyType()),
		Made: e.made, Handle: handle, Written: path,
	}
	if output == cli.JSON {
		return cli.PrintJSON(e.cmd, r)
	}
	key := "there already"
	if r.Made {
		key = "made now"
	}
	return cli.PrintText(e.cmd, fmt.Sprintf("EK hash: %s\nDevID key: %s, %s\nwritten: %s\n",
		r.EKHash, r.KeyType, key, path))
}
