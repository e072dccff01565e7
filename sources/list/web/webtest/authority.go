package webtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// Years is the furthest that clocks may jump in tests.
const Years = 5 * 365 * 24 * time.Hour

// An Authority issues certificates for tests.
type Authority struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewAuthority returns an authority whose certificate is valid for Years.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	key := NewKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-Years), NotAfter: time.Now().Add(Years),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &Authority{cert, key}
}

// NewKey returns a new key.
func NewKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Issue returns a certificate for 127.0.0.1 and its key as PEM.
func (a *Authority) Issue(tb testing.TB, name string, until time.Time) (cert, key []byte) {
	tb.Helper()
	leaf := NewKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-Years), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, leaf.Public(), a.Key)
	if err != nil {
		tb.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leaf)
	if err != nil {
		tb.Fatal(err)
	}
	return PEM("CERTIFICATE", der), PEM("PRIVATE KEY", keyDER)
}

// Pair returns a certificate for a tls.Config.
func (a *Authority) Pair(tb testing.TB, name string, until time.Time) tls.Certificate {
	tb.Helper()
	pair, err := tls.X509KeyPair(a.Issue(tb, name, until))
	if err != nil {
		tb.Fatal(err)
	}
	return pair
}

// PEM returns the authority's certificate.
func (a *Authority) PEM() []byte { return PEM("CERTIFICATE", a.Cert.Raw) }

// PEM returns a PEM block.
func PEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
