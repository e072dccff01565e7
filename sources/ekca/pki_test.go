package ekca_test

import (
	"context"
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

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// today is when certificates of these tests are verified.
func today() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

// authority is a CA that these tests have made.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

type edit = func(*x509.Certificate)

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func newSerial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		tb.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}

func caTemplate(tb testing.TB, name string, edits ...edit) *x509.Certificate {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber:          newSerial(tb),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Test"}},
		NotBefore:             today().AddDate(-1, 0, 0),
		NotAfter:              today().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, e := range edits {
		e(template)
	}
	return template
}

func sign(
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

// newRoot returns a root CA.
func newRoot(tb testing.TB, name string, edits ...edit) *authority {
	tb.Helper()
	return newRootWithKey(tb, name, newKey(tb), edits...)
}

func newRootWithKey(tb testing.TB, name string, key crypto.Signer, edits ...edit) *authority {
	tb.Helper()
	template := caTemplate(tb, name, edits...)
	return &authority{cert: sign(tb, template, template, key.Public(), key), key: key}
}

// sub returns a CA below a.
func (a *authority) sub(tb testing.TB, name string, edits ...edit) *authority {
	tb.Helper()
	return a.subWithKey(tb, name, newKey(tb), edits...)
}

func (a *authority) subWithKey(tb testing.TB, name string, key crypto.Signer, edits ...edit) *authority {
	tb.Helper()
	return &authority{cert: sign(tb, caTemplate(tb, name, edits...), a.cert, key.Public(), a.key), key: key}
}

// as returns a under another name, or without a key identifier: what it signs
// then says so.
func (a *authority) as(edits ...edit) *authority {
	c := *a.cert
	for _, e := range edits {
		e(&c)
	}
	return &authority{cert: &c, key: a.key}
}

func ekTemplate(tb testing.TB, edits ...edit) *x509.Certificate {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(0x0abc),
		NotBefore:             today().AddDate(-1, 0, 0),
		NotAfter:              today().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageKeyAgreement,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{altName(tb, tpmName("id:54455354", "model 1", "id:0001"))},
	}
	for _, e := range edits {
		e(template)
	}
	return template
}

// ek returns an EK certificate for a fresh key.
func (a *authority) ek(tb testing.TB, edits ...edit) *x509.Certificate {
	tb.Helper()
	return sign(tb, ekTemplate(tb, edits...), a.cert, newKey(tb).Public(), a.key)
}

// tpmName is a directory name with a TPM's attributes, one an RDN.
func tpmName(manufacturer, model, version string) pkix.RDNSequence {
	var name pkix.RDNSequence
	for i, v := range []string{manufacturer, model, version} {
		name = append(name, pkix.RelativeDistinguishedNameSET{
			{Type: asn1.ObjectIdentifier{2, 23, 133, 2, i + 1}, Value: v},
		})
	}
	return name
}

// altName is a critical subject alternative name with directory names.
func altName(tb testing.TB, names ...pkix.RDNSequence) pkix.Extension {
	tb.Helper()
	var general []asn1.RawValue
	for _, name := range names {
		der := marshal(tb, name)
		general = append(general, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der})
	}
	return extension(tb, true, asn1.ObjectIdentifier{2, 5, 29, 17}, general)
}

func extension(tb testing.TB, critical bool, id asn1.ObjectIdentifier, value any) pkix.Extension {
	tb.Helper()
	return pkix.Extension{Id: id, Critical: critical, Value: marshal(tb, value)}
}

func marshal(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func certsOf(cas ...*authority) []*x509.Certificate {
	out := make([]*x509.Certificate, len(cas))
	for i, a := range cas {
		out[i] = a.cert
	}
	return out
}

func write(tb testing.TB, path string, data []byte) string {
	tb.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// caFile writes certificates into a PEM file and returns its path.
func caFile(tb testing.TB, certs ...*x509.Certificate) string {
	tb.Helper()
	return write(tb, filepath.Join(tb.TempDir(), "ca.pem"), pemOf(certs...))
}

func newSource(tb testing.TB, cfg ekca.Config) *ekca.Source {
	tb.Helper()
	if cfg.Now == nil {
		cfg.Now = today
	}
	src, err := ekca.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return src
}

// load returns a source that has loaded cfg.
func load(tb testing.TB, cfg ekca.Config) *ekca.Source {
	tb.Helper()
	src := newSource(tb, cfg)
	if err := src.Load(tb.Context()); err != nil {
		tb.Fatalf("Load: %v", err)
	}
	return src
}

// trusting returns a source with these authorities in one file.
func trusting(tb testing.TB, cas ...*authority) *ekca.Source {
	tb.Helper()
	return load(tb, ekca.Config{Config: truststore.Config{CAPath: caFile(tb, certsOf(cas...)...)}})
}

// evidence is what a machine with this certificate has sent.
func evidence(cert *x509.Certificate, chain ...*x509.Certificate) *sources.Evidence {
	ev := &sources.Evidence{EK: cert.PublicKey, Certificate: cert.Raw}
	for _, c := range chain {
		if c == nil {
			c = new(x509.Certificate)
		}
		ev.Chain = append(ev.Chain, c.Raw)
	}
	return ev
}

func check(tb testing.TB, src *ekca.Source, cert *x509.Certificate, chain ...*x509.Certificate) sources.Verdict {
	tb.Helper()
	v, err := src.Check(context.Background(), evidence(cert, chain...))
	if err != nil {
		tb.Fatalf("Check: %v", err)
	}
	return v
}

func wantListed(
	tb testing.TB, src *ekca.Source, cert *x509.Certificate, chain ...*x509.Certificate,
) sources.Attributes {
	tb.Helper()
	v := check(tb, src, cert, chain...)
	if !v.Listed {
		tb.Fatalf("not listed: %s", v.Reason)
	}
	return v.Attributes
}

// wantNotListed wants "not listed" with a reason that holds a text.
func wantNotListed(
	tb testing.TB, why string, src *ekca.Source, cert *x509.Certificate, chain ...*x509.Certificate,
) {
	tb.Helper()
	v := check(tb, src, cert, chain...)
	if v.Listed || v.Attributes.Certificate != nil || v.Attributes.CAs != nil {
		tb.Fatalf("listed: %+v", v)
	}
	wantText(tb, v.Reason, why)
}
