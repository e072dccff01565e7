// Package certstest makes certification authorities and certificates for tests. They are valid at
// Today. A function that fails also fails the test.
package certstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Today is the time at which tests verify certificates.
func Today() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

// An Edit changes a template before it is signed.
type Edit = func(*x509.Certificate)

// NewKey returns a new P-256 key.
func NewKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// NewSerial returns a random serial number.
func NewSerial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		tb.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}

// CA returns the template of a CA's certificate, valid for ten years.
func CA(tb testing.TB, name string, edits ...Edit) *x509.Certificate {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber:          NewSerial(tb),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Test"}},
		NotBefore:             Today().AddDate(-1, 0, 0),
		NotAfter:              Today().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, e := range edits {
		e(template)
	}
	return template
}

// Sign returns a certificate for a public key, signed with key, the parent's private key. For a
// root, parent is template.
func Sign(
	tb testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer,
) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// Extension returns an extension with the value marshalled to DER.
func Extension(tb testing.TB, critical bool, id asn1.ObjectIdentifier, value any) pkix.Extension {
	tb.Helper()
	return pkix.Extension{Id: id, Critical: critical, Value: Marshal(tb, value)}
}

// Marshal returns a value in DER.
func Marshal(tb testing.TB, value any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// PEM returns certificates in PEM.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Write writes a file, and returns its path.
func Write(tb testing.TB, path string, data []byte) string {
	tb.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// File writes certificates into a PEM file in a temporary folder, and returns its path.
func File(tb testing.TB, certs ...*x509.Certificate) string {
	tb.Helper()
	return Write(tb, filepath.Join(tb.TempDir(), "ca.pem"), PEM(certs...))
}
