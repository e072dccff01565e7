package devid

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// certificateFlags are the flags of devid issue certificate.
type certificateFlags struct {
	issueFlags
	caCert, caKey string
	csr           bool
	subject       []string
	days          int
	crlURL        string
}

func newCertificate(output *cli.Format) *cobra.Command {
	var f certificateFlags
	cmd := &cobra.Command{
		Use:   "certificate ANSWER",
		Short: "Sign a machine's DevID, or print its certificate request for another CA",
		Long: `certificate checks a machine's ANSWER to the challenge ("-" is the standard input): that its EK, AK and
DevID key are in one TPM, and that the DevID key cannot leave it. It asks the sources again, and signs the DevID's
certificate with the CA's key, an RSA or ECDSA key in PEM. --ca-cert has the CA's certificate first and
those above it behind; it prints the DevID's certificate followed by all of these that are not self-signed, which
is what the agent's cert_path takes.

The certificate is by the TCG's profile ("TPM 2.0 Keys for Device Identity and Attestation"): for digital
signatures, without an end unless --days says so, with the TPM's serial number in its subject alternative name.
Its subject is --subject, or else the name that a list has for the machine as CN, and the EK hash as serialNumber.

With --csr, it prints the certificate request of the machine instead, once its signature, key and contents are
verified: it asks for nothing but the subject and the TPM's serial number, and its subject is --subject, or else
the EK hash as serialNumber. Sign it with the CA that you have.

When the certificate is written, or if the answer proves nothing, the state is removed.

Exit code 3 says that the answer or the machine is refused, 4 that a source cannot tell.`,
		Example: cli.Examples(
			"tpm-attestor devid issue certificate answer.json --config server.conf --state laptop-17.state "+
				"--ca-cert ca.pem --ca-key ca.key --to devid.pem",
			"tpm-attestor devid issue certificate answer.json --config server.conf --state laptop-17.state "+
				"--csr > devid.csr",
		),
		Args: cli.OneArgument("the answer"),
		RunE: func(cmd *cobra.Command, args []string) error { return runCertificate(cmd, &f, *output, args[0]) },
	}
	cmd.ValidArgsFunction = cli.Files
	f.add(cmd, "certificate")
	flags := cmd.Flags()
	flags.StringVar(&f.caCert, "ca-cert", "", "the CA's certificate, a PEM file")
	flags.StringVar(&f.caKey, "ca-key", "", "the CA's private key, a PEM file")
	flags.BoolVar(&f.csr, "csr", false, "print the machine's certificate request for another CA")
	flags.StringArrayVar(&f.subject, "subject", nil, "an attribute of the subject, such as CN=laptop-17; may be "+
		"repeated: CN, O, OU, C, L, ST, serialNumber")
	flags.IntVar(&f.days, "days", 0, "for how many days the certificate is valid (default: it has no end)")
	flags.StringVar(&f.crlURL, "crl-url", "", "where the CA's certificate revocation list is, to be written into the "+
		"certificate")
	cli.Complete(cmd, cli.Files, "ca-cert", "ca-key")
	cli.Complete(cmd, completeSubject, "subject")
	cli.Complete(cmd, cli.BeginningWith("http://", "https://"), "crl-url")
	cli.Complete(cmd, cli.Nothing, "days")
	return cmd
}

// maxDays is the largest value of --days: a hundred years.
const maxDays = 36525

func (f *certificateFlags) check() error {
	if err := f.issueFlags.check(); err != nil {
		return err
	}
	switch {
	case f.csr && (f.caCert != "" || f.caKey != "" || f.days != 0 || f.crlURL != ""):
		return cli.UsageError("--csr is for another CA: leave out --ca-cert, --ca-key, --days and --crl-url")
	case !f.csr && (f.caCert == "" || f.caKey == ""):
		return cli.UsageError("name the CA's certificate and key, with --ca-cert and --ca-key, or choose --csr")
	case f.days < 0 || f.days > maxDays:
		return cli.UsageError("--days %d: choose 1 to %d, or leave it out for a certificate without an end",
			f.days, maxDays)
	case f.crlURL != "" && !strings.HasPrefix(f.crlURL, "http://") && !strings.HasPrefix(f.crlURL, "https://"):
		return cli.UsageError("--crl-url %q: write it as http://crl.example.org/devid.crl", f.crlURL)
	}
	_, err := parseSubject(f.subject)
	return err
}

func runCertificate(cmd *cobra.Command, f *certificateFlags, output cli.Format, name string) error {
	if err := f.check(); err != nil {
		return err
	}
	var ca *authority
	if !f.csr {
		var err error
		if ca, err = readAuthority(f.caCert, f.caKey); err != nil {
			return cli.Exit(cli.ExitUsage, err)
		}
	}
	answer, err := readExchanged(cmd, typeAnswer, name)
	if err != nil {
		return err
	}
	s, request, err := readState(f.state)
	if err != nil {
		return err
	}
	i, err := openIssuer(cmd, f.config)
	if err != nil {
		return err
	}
	defer i.set.Close()
	p, err := i.prove(cmd.Context(), s, answer)
	if errors.Is(err, errNoProof) {
		return errors.Join(err, os.Remove(f.state))
	}
	if err != nil {
		return err
	}
	p.stranger = i.noteStranger(cmd, p.decision.Listed, p.evidence.EKHash)
	if f.csr {
		return f.printRequest(cmd, output, request.CSR, p)
	}
	return f.issue(cmd, output, ca, i, p)
}

// issue signs the certificate and prints it.
func (f *certificateFlags) issue(
	cmd *cobra.Command, output cli.Format, ca *authority, i *issuer, p *proved,
) error {
	subject, err := f.subjectOf(p)
	if err != nil {
		return err
	}
	san, err := hardwareName(p.hardwareSerial())
	if err != nil {
		return err
	}
	cert, err := ca.sign(cmd.Context(), &x509.Certificate{
		Subject: subject, NotAfter: f.end(time.Now()), ExtraExtensions: []pkix.Extension{san},
		CRLDistributionPoints: f.crls(),
	}, p.devID.Key)
	if err != nil {
		return cli.Exit(cli.ExitFailed, fmt.Errorf("sign the certificate: %w", err))
	}
	if end := ca.end(); end.Before(cert.NotAfter) {
		cli.Note(cmd, "a certificate of the CA ends on %s: no server takes this DevID after that",
			end.UTC().Format(time.RFC3339))
	}
	chain := ca.behind(cert)
	if _, err := attestor.ReadDevIDChain(chain); err != nil {
		return cli.Exit(cli.ExitUsage, fmt.Errorf("%s: no server would take the DevID with these certificates: %w",
			f.caCert, err))
	}
	if err := checkTrusted(cmd.Context(), i.members, &sources.DevID{Chain: chain, Key: p.devID.Key}); err != nil {
		return cli.Exit(cli.ExitRefused, fmt.Errorf("%s: %w", f.caCert, err))
	}
	var text bytes.Buffer
	for _, der := range chain {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	sum := sha256.Sum256(cert.Raw)
	return f.finish(cmd, output, "certificate", text.Bytes(), &issued{
		Subject: cert.Subject.String(), Serial: cert.SerialNumber.Text(16),
		NotAfter: cert.NotAfter.UTC().Format(time.RFC3339), Fingerprint: hex.EncodeToString(sum[:]),
	}, p)
}

// noEnd is the expiry of a certificate that does not expire (RFC 5280, 4.1.2.5).
func noEnd() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

func (f *certificateFlags) end(now time.Time) time.Time {
	if f.days == 0 {
		return noEnd()
	}
	return now.AddDate(0, 0, f.days)
}

func (f *certificateFlags) crls() []string {
	if f.crlURL == "" {
		return nil
	}
	return []string{f.crlURL}
}

// subjectOf returns the subject of a machine's certificate: what the operator says, or else what was proved and
// what a list says. It contains nothing that the machine merely claims.
func (f *certificateFlags) subjectOf(p *proved) (pkix.Name, error) {
	if len(f.subject) > 0 {
		return parseSubject(f.subject)
	}
	name := pkix.Name{SerialNumber: p.evidence.EKHash.String()}
	for i := range p.decision.Attributes {
		switch known := p.decision.Attributes[i].Name; {
		case known == "", known == name.CommonName:
		case name.CommonName != "":
			return name, cli.Exit(cli.ExitRefused, fmt.Errorf("lists name the machine both %q and %q: "+
				"choose, with --subject", name.CommonName, known))
		case len([]rune(known)) > maxAttribute:
			return name, cli.Exit(cli.ExitRefused, fmt.Errorf("the machine's name %q has more than %d characters: "+
				"choose another, with --subject", known, maxAttribute))
		default:
			name.CommonName = known
		}
	}
	return name, nil
}

// hardwareSerial returns the TPM's serial number ("TPM 2.0 Keys for Device Identity and Attestation", 8.1): that of
// its EK certificate if a source has verified the certificate, or else the digest of the EK. What a machine sends
// is not certified unless it was verified.
func (p *proved) hardwareSerial() []byte {
	cert, err := attestor.ParseEKCertificate(p.evidence.Certificate)
	if err != nil || len(cert.AuthorityKeyId) == 0 {
		return p.evidence.EKHash[:]
	}
	i := slices.IndexFunc(p.decision.Attributes, func(a sources.Attributes) bool {
		c := a.Certificate
		return c != nil && c.Manufacturer != "" && c.Serial == cert.SerialNumber.Text(16)
	})
	if i < 0 {
		return p.evidence.EKHash[:]
	}
	manufacturer := strings.TrimPrefix(p.decision.Attributes[i].Certificate.Manufacturer, "id:")
	return fmt.Appendf(nil, "%s:%x:%x", manufacturer, cert.AuthorityKeyId, cert.SerialNumber)
}

// printRequest prints the machine's certificate request, if it asks only for what was proved and what the operator
// says.
func (f *certificateFlags) printRequest(cmd *cobra.Command, output cli.Format, der []byte, p *proved) error {
	if len(der) == 0 {
		return cli.Exit(cli.ExitRefused, errors.New("the request has no certificate request: make it with --csr"))
	}
	csr, err := f.checkRequest(der, p)
	if err != nil {
		return cli.Exit(cli.ExitRefused, fmt.Errorf("the certificate request: %w", err))
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	return f.finish(cmd, output, "certificate request", text, &issued{Subject: csr.Subject.String()}, p)
}

func (f *certificateFlags) checkRequest(der []byte, p *proved) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	if key, ok := csr.PublicKey.(equalKey); !ok || !key.Equal(p.devID.Key) {
		return nil, errors.New("its key is not the DevID's")
	}
	subject := pkix.Name{SerialNumber: p.evidence.EKHash.String()}
	if len(f.subject) > 0 {
		if subject, err = parseSubject(f.subject); err != nil {
			return nil, err
		}
	}
	want, err := asn1.Marshal(subject.ToRDNSequence())
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, csr.RawSubject) {
		return nil, fmt.Errorf("it asks for the subject %q, not %q: if that is right, say so with --subject",
			csr.Subject, subject)
	}
	san, err := hardwareName(p.evidence.EKHash[:])
	if err != nil {
		return nil, err
	}
	asked, err := attributesOf(csr)
	if err != nil {
		return nil, err
	}
	if allowed, err := asn1.Marshal(extensionRequest{oidExtensionRequest, [][]pkix.Extension{{san}}}); err != nil {
		return nil, err
	} else if len(asked) != 1 || !bytes.Equal(asked[0].FullBytes, allowed) {
		return nil, errors.New("it asks for other extensions than the TPM's serial number")
	}
	return csr, nil
}

// oidExtensionRequest is the type of the attribute extensionRequest (RFC 2985, 5.4.2).
var oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}

// extensionRequest is the attribute of a certificate request that asks for extensions.
type extensionRequest struct {
	Type   asn1.ObjectIdentifier
	Values [][]pkix.Extension `asn1:"set"`
}

// attributesOf returns all attributes of a certificate request (RFC 2986, 4.1). A CA may act on attributes that
// package x509 does not know.
func attributesOf(csr *x509.CertificateRequest) ([]asn1.RawValue, error) {
	var info struct {
		Version      int
		Subject, Key asn1.RawValue
		Attributes   []asn1.RawValue `asn1:"tag:0"`
	}
	rest, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &info)
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes follow it")
	}
	return info.Attributes, err
}

// issued is the JSON output of devid issue certificate. PEM is what was written, or what the user is to write.
type issued struct {
	Version     int      `json:"version"`
	EKHash      string   `json:"ek_hash"`
	KeyType     string   `json:"key_type"`
	Rules       []string `json:"rules"`
	Sources     []string `json:"sources"`
	Known       bool     `json:"machine_known"` // not only the vendor of its TPM
	Subject     string   `json:"subject"`
	Serial      string   `json:"serial,omitempty"`
	NotAfter    string   `json:"not_after,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"`
	Written     string   `json:"written,omitempty"`
	PEM         string   `json:"pem"`
}

// finish prints what was made, and removes the state of the challenge.
func (f *certificateFlags) finish(
	cmd *cobra.Command, output cli.Format, what string, text []byte, r *issued, p *proved,
) error {
	keyType, err := attestor.KeyTypeOf(p.devID.Key)
	if err != nil {
		return err
	}
	r.Version, r.EKHash, r.KeyType, r.PEM = 1, p.evidence.EKHash.String(), string(keyType), string(text)
	r.Rules, r.Sources, r.Written, r.Known = p.decision.Rules, p.decision.Listed, f.to, !p.stranger
	if output == cli.JSON && f.to == "" {
		err = cli.PrintJSON(cmd, r)
	} else {
		err = f.print(cmd, what, text)
	}
	if err != nil {
		return err
	}
	if err := os.Remove(f.state); err != nil {
		return fmt.Errorf("remove the state of the challenge: %w", err)
	}
	if f.to == "" {
		return nil
	}
	if output == cli.JSON {
		return cli.PrintJSON(cmd, r)
	}
	cli.Note(cmd, "a %s for %s, whose EK hash is %s", what, r.Subject, r.EKHash)
	return nil
}
