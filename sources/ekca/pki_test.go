package ekca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

type edit = certstest.Edit

// authority is a CA that these tests have made.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newRoot returns a root CA.
func newRoot(tb testing.TB, name string, edits ...edit) *authority {
	tb.Helper()
	return newRootWithKey(tb, name, certstest.NewKey(tb), edits...)
}

func newRootWithKey(tb testing.TB, name string, key crypto.Signer, edits ...edit) *authority {
	tb.Helper()
	template := certstest.CA(tb, name, edits...)
	return &authority{cert: certstest.Sign(tb, template, template, key.Public(), key), key: key}
}

// sub returns a CA below a.
func (a *authority) sub(tb testing.TB, name string, edits ...edit) *authority {
	tb.Helper()
	return a.subWithKey(tb, name, certstest.NewKey(tb), edits...)
}

func (a *authority) subWithKey(tb testing.TB, name string, key crypto.Signer, edits ...edit) *authority {
	tb.Helper()
	return &authority{cert: certstest.Sign(tb, certstest.CA(tb, name, edits...), a.cert, key.Public(), a.key), key: key}
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
		NotBefore:             certstest.Today().AddDate(-1, 0, 0),
		NotAfter:              certstest.Today().AddDate(10, 0, 0),
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
	return certstest.Sign(tb, ekTemplate(tb, edits...), a.cert, certstest.NewKey(tb).Public(), a.key)
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
		der := certstest.Marshal(tb, name)
		general = append(general, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der})
	}
	return certstest.Extension(tb, true, asn1.ObjectIdentifier{2, 5, 29, 17}, general)
}

func certsOf(cas ...*authority) []*x509.Certificate {
	out := make([]*x509.Certificate, len(cas))
	for i, a := range cas {
		out[i] = a.cert
	}
	return out
}

func newSource(tb testing.TB, cfg ekca.Config) *ekca.Source {
	tb.Helper()
	if cfg.Now == nil {
		cfg.Now = certstest.Today
	}
	cfg.Patience = time.Minute // on a machine that is busy, a server that is well answers late
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
	return load(tb, ekca.Config{Config: truststore.Config{CAPath: certstest.File(tb, certsOf(cas...)...)}})
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
