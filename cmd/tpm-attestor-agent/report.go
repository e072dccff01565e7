package main

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// timeout is how long a TPM may take: a slow one makes an RSA key in a minute.
const timeout = 5 * time.Minute

// open returns the TPM that the options name, without touching it. An error is
// of the options, or of a password in the environment.
func open(device, key string, getenv func(string) string) (*tpm.TPM, error) {
	ek, err := tpm.ParseEK(key)
	if err != nil {
		return nil, err
	}
	return tpm.New(tpm.Config{
		Device:              device,
		EK:                  ek,
		EndorsementPassword: getenv("TPM_ENDORSEMENT_PASSWORD"),
		OwnerPassword:       getenv("TPM_OWNER_PASSWORD"),
	})
}

// inspect asks the TPM.
func inspect(ctx context.Context, t *tpm.TPM) (*tpm.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return t.Inspect(ctx)
}

// describe returns the report for people. The form of its first line does not
// change: scripts read it.
func describe(r *tpm.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "EK hash: %s  (%s)\n", r.EK.Hash, r.EK.KeyType)
	if r.EK.Persistent != 0 {
		fmt.Fprintf(&b, "EK: persistent, handle %#x\n", r.EK.Persistent)
	} else {
		b.WriteString("EK: created when needed; none is persistent\n")
	}
	if r.EK.Certificate == nil {
		b.WriteString("EK certificate: the TPM has none for this EK; " +
			"servers can admit the machine by its EK hash\n")
	} else {
		fmt.Fprintf(&b, "EK certificate: at NV index %#08x\n", r.EK.Certificate.Index)
	}
	for i := range r.Certificates {
		describeCertificate(&b, &r.Certificates[i])
	}
	if len(r.Chain) > 0 {
		fmt.Fprintf(&b, "\nCA certificates in the TPM: %d\n", len(r.Chain))
	}
	if r.ChainErr != nil {
		fmt.Fprintf(&b, "\n%v\n", r.ChainErr)
	}
	return b.String()
}

// inPEM returns the EK, then the certificates that could be read, each as a
// block of PEM (RFC 7468).
func inPEM(r *tpm.Report) (string, error) {
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

func describeCertificate(b *strings.Builder, c *tpm.Certificate) {
	if c.Err != nil {
		fmt.Fprintf(b, "\nCertificate at %v\n", c.Err)
		return
	}
	cert := c.Certificate
	fmt.Fprintf(b, "\nCertificate at NV index %#08x\n", c.Index)
	if keyType, err := attestor.KeyTypeOf(cert.PublicKey); err == nil {
		fmt.Fprintf(b, "  key:        %s\n", keyType)
	}
	if hash, err := attestor.HashEK(cert.PublicKey); err == nil {
		fmt.Fprintf(b, "  EK hash:    %s\n", hash)
	}
	fmt.Fprintf(b, "  issuer:     %s\n", name(cert.Issuer))
	fmt.Fprintf(b, "  serial:     %x\n", cert.SerialNumber)
	if model := tpmName(cert); model != "" {
		fmt.Fprintf(b, "  TPM:        %s\n", model)
	}
	fmt.Fprintf(b, "  valid:      %s to %s\n", date(cert.NotBefore), date(cert.NotAfter))
	for _, url := range cert.IssuingCertificateURL {
		fmt.Fprintf(b, "  issuer at:  %s\n", printable(url))
	}
}

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func name(n pkix.Name) string { return printable(n.String()) }

// printable returns s for a terminal, with what a certificate may use to play
// tricks on one escaped.
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

// tpmName returns the TPM's manufacturer, model and version as a certificate
// states them, or nothing.
func tpmName(cert *x509.Certificate) string {
	var parts []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		for _, attr := range directoryName(ext.Value) {
			for _, known := range tpmAttributes {
				if value, ok := attr.Value.(string); ok && attr.Type.Equal(known.oid) {
					parts = append(parts, known.name+" "+printable(value))
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
