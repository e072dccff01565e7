// Package ekreport describes a TPM's endorsement key and certificates to an operator who enrols the machine: as
// text, as PEM and as JSON.
package ekreport

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
)

// timeout is how long a TPM may take. A slow TPM makes an RSA key in a minute.
const timeout = 5 * time.Minute

// Open returns the TPM that the options describe. It does not open the device. It reads the
// passwords of the TPM's hierarchies from the environment. An error means that an option or
// a password is wrong.
func Open(device, key string, getenv func(string) string) (*tpm.TPM, error) {
	ek, err := tpm.ParseEK(key)
	if err != nil {
		return nil, err
	}
	return tpm.New(tpm.Config{
		Device:              Device(device),
		EK:                  ek,
		EndorsementPassword: getenv("TPM_ENDORSEMENT_PASSWORD"),
		OwnerPassword:       getenv("TPM_OWNER_PASSWORD"),
	})
}

// Device returns the device that a command line names. A relative path of a socket becomes absolute. In a
// configuration it would be a mistake, since the working directory is not known there.
func Device(name string) string {
	path, ok := strings.CutPrefix(name, "unix:")
	if !ok || path == "" {
		return name
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return name // the error when it is opened says that the path is not absolute
	}
	return "unix:" + abs
}

// Inspect reads the report from the TPM, within five minutes.
func Inspect(ctx context.Context, t *tpm.TPM) (*tpm.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var report *tpm.Report
	err := tpm.Do(ctx, func() (err error) {
		report, err = t.Inspect(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return report, nil
}

// ByFlags makes the remedy in err name a flag of the caller's command instead of a key of the agent plugin's
// configuration. flags maps keys to flags. ByFlags returns err unchanged if its key has no flag, if it is another
// error, and if it is nil.
func ByFlags(err error, flags map[string]string) error {
	e, ok := errors.AsType[*tpm.Error](err)
	if !ok || flags[e.Key] == "" {
		return err
	}
	hint := strings.ReplaceAll(e.Hint, e.Key, flags[e.Key])
	return &byFlagsError{err, strings.ReplaceAll(err.Error(), e.Hint, hint)}
}

// A byFlagsError is an error with a different text.
type byFlagsError struct {
	error
	text string
}

func (e *byFlagsError) Error() string { return e.text }

func (e *byFlagsError) Unwrap() error { return e.error }

// Text describes an EK for people. The form of the first line must not change, since scripts read it.
func Text(e EK) string {
	var b strings.Builder
	fmt.Fprintf(&b, "EK hash: %s  (%s)\n", e.Hash, e.KeyType)
	if e.From != fromTPM {
		fmt.Fprintf(&b, "EK: from %s\n", printable(e.From))
	} else {
		e.textOfTPM(&b)
	}
	for i := range e.Certificates {
		e.Certificates[i].text(&b)
	}
	if e.CACertificates > 0 {
		fmt.Fprintf(&b, "\nCA certificates in the TPM: %d\n", e.CACertificates)
	}
	if e.ChainError != "" {
		fmt.Fprintf(&b, "\n%s\n", e.ChainError)
	}
	return b.String()
}

// textOfTPM writes where the EK and its certificate are in the TPM.
func (e *EK) textOfTPM(b *strings.Builder) {
	if e.PersistentHandle != "" {
		fmt.Fprintf(b, "EK: persistent, handle %s\n", e.PersistentHandle)
	} else {
		b.WriteString("EK: created when needed; none is persistent\n")
	}
	if e.CertificateIndex == "" {
		b.WriteString("EK certificate: the TPM has none for this EK; servers can admit the machine by its EK hash\n")
	} else {
		fmt.Fprintf(b, "EK certificate: at NV index %s\n", e.CertificateIndex)
	}
}

// PEM returns the EK, followed by all certificates that could be read, as PEM blocks (RFC 7468).
func PEM(r *tpm.Report) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(r.EK.Public)
	if err != nil {
		return "", fmt.Errorf("encode the EK: %w", err)
	}
	blocks := []pem.Block{{Type: "PUBLIC KEY", Bytes: der}}
	for i := range r.Certificates {
		if c := &r.Certificates[i]; c.Err == nil {
			blocks = append(blocks, pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate.Raw})
		}
	}
	for _, der := range r.Chain {
		blocks = append(blocks, pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	var b strings.Builder
	for i := range blocks {
		b.Write(pem.EncodeToMemory(&blocks[i]))
	}
	return b.String(), nil
}

func (c *Certificate) text(b *strings.Builder) {
	switch {
	case c.Error != "":
		fmt.Fprintf(b, "\nCertificate at %s\n", c.Error)
		return
	case c.Index != "":
		fmt.Fprintf(b, "\nCertificate at NV index %s\n", c.Index)
	default:
		b.WriteString("\nCertificate\n")
	}
	line := func(label, value string) {
		if value != "" {
			fmt.Fprintf(b, "  %-11s %s\n", label+":", value)
		}
	}
	line("key", c.KeyType)
	line("EK hash", c.Hash)
	line("issuer", printable(c.Issuer))
	line("serial", c.Serial)
	line("TPM", printable(c.TPM))
	line("valid", day(c.NotBefore)+" to "+day(c.NotAfter))
	for _, url := range c.IssuerURLs {
		line("issuer at", printable(url))
	}
}

// day returns the date in a time of RFC 3339.
func day(stamp string) string {
	date, _, _ := strings.Cut(stamp, "T")
	return date
}

// printable returns s for a terminal. It escapes everything but printable ASCII, since a
// certificate may hold control characters.
func printable(s string) string {
	q := fmt.Sprintf("%+q", s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// The attributes of a TPM in an EK certificate's subject alternative name (EK
// Credential Profile, 3.2.9).
var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	tpmAttributes     = [...]struct {
		oid  asn1.ObjectIdentifier
		name string
	}{
		{asn1.ObjectIdentifier{2, 23, 133, 2, 1}, "manufacturer"},
		{asn1.ObjectIdentifier{2, 23, 133, 2, 2}, "model"},
		{asn1.ObjectIdentifier{2, 23, 133, 2, 3}, "version"},
	}
)

// tpmName returns those of the TPM's manufacturer, model and version that a certificate has.
func tpmName(cert *x509.Certificate) string {
	var parts []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		for _, attr := range directoryName(ext.Value) {
			for _, known := range tpmAttributes {
				if value, ok := attr.Value.(string); ok && attr.Type.Equal(known.oid) {
					parts = append(parts, known.name+" "+value)
				}
			}
		}
	}
	return strings.Join(parts, ", ")
}

// directoryName returns the attributes of the directory names among the general
// names (RFC 5280, 4.2.1.6) in der.
func directoryName(der []byte) []pkix.AttributeTypeAndValue {
	var names []asn1.RawValue
	if _, err := asn1.Unmarshal(der, &names); err != nil {
		return nil
	}
	var attrs []pkix.AttributeTypeAndValue
	for _, n := range names {
		const directoryNameTag = 4
		if n.Class != asn1.ClassContextSpecific || n.Tag != directoryNameTag {
			continue
		}
		var rdns pkix.RDNSequence
		if _, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil {
			return nil
		}
		for _, set := range rdns {
			attrs = append(attrs, set...)
		}
	}
	return attrs
}
