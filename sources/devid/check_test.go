package devid_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// What a DevID says becomes selectors, with all values of a name and the bundles of the chain. A
// DevID need not expire, and may have the TCG's critical subject alternative name.
func TestAttributes(t *testing.T) {
	root := newRoot(t, "Device CA", func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"IT", "PKI"} })
	leaf := root.devID(t, certstest.NewKey(t).Public(), func(c *x509.Certificate) {
		c.SerialNumber = big.NewInt(0x0abc)
		c.Subject = pkix.Name{
			CommonName: "laptop-17", SerialNumber: "PF0815",
			Organization: []string{"Example", "Example Ltd"}, OrganizationalUnit: []string{"Sales"},
		}
	})
	src := load(t, devid.Config{Bundles: map[string]string{
		"laptops": certstest.File(t, certsOf(root)...), "other": certstest.File(t, newRoot(t, "Other").cert), "all": certstest.File(t, certsOf(root)...),
	}})
	sum := sha256.Sum256(leaf.Raw)
	want := sources.Attributes{CAs: []string{"all", "laptops"}, DevID: &sources.DevIDCertificate{
		SubjectCN: []string{"laptop-17"}, SubjectO: []string{"Example", "Example Ltd"}, SubjectOU: []string{"Sales"},
		SubjectSerialNumber: []string{"PF0815"},
		IssuerCN:            []string{"Device CA"}, IssuerO: []string{"Test"}, IssuerOU: []string{"IT", "PKI"},
		Serial: "abc", Fingerprint: hex.EncodeToString(sum[:]),
	}}
	if diff := cmp.Diff(want, wantListed(t, src, proven(t, leaf))); diff != "" {
		t.Error(diff)
	}
}

// An attacker chooses a name as far as the CA permits it: a value that does not fit into a
// selector, or would break a line of a log, is left out, and the other values stay. An RDN may have
// several values.
func TestAwkwardNames(t *testing.T) {
	root := newRoot(t, "Device CA")
	fits := strings.Repeat("a", sources.MaxSelector-len(sources.PrefixDevIDSubjectCN))
	value := func(attribute int, text string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, attribute}, Value: text}
	}
	subject := marshal(t, pkix.RDNSequence{
		{value(3, "one"), value(3, "two"), value(11, "both"), value(5, "SN")},
		{value(3, fits)},
		{value(3, fits+"a")},
		{value(3, "a\nb")},
		{value(3, "")},
		{value(10, strings.Repeat("é", 121))},
		{value(12, "a title")},
		{value(5, "second")},
	})
	leaf := root.devID(t, certstest.NewKey(t).Public(), func(c *x509.Certificate) { c.RawSubject = subject })
	got := wantListed(t, trusting(t, root), proven(t, leaf)).DevID
	slices.Sort(got.SubjectCN) // DER sorts the values of an RDN
	for _, c := range []struct{ got, want []string }{
		{got.SubjectCN, []string{fits, "one", "two"}},
		{got.SubjectO, nil},
		{got.SubjectOU, []string{"both"}},
		{got.SubjectSerialNumber, []string{"SN", "second"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
	if err := (sources.Attributes{DevID: got}).Validate(); err != nil {
		t.Error(err)
	}
	none := root.devID(t, certstest.NewKey(t).Public(), func(c *x509.Certificate) { c.Subject = pkix.Name{} })
	if got := wantListed(t, trusting(t, root), proven(t, none)).DevID; got.SubjectCN != nil || got.Fingerprint == "" {
		t.Errorf("of an empty subject: %+v", got)
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The source says nothing before the challenge. That a machine has no DevID is a fact: a machine
// that leaves its DevID out must not make the server wait for it.
func TestWithoutDevID(t *testing.T) {
	src := trusting(t, newRoot(t, "Root"))
	ev := sourcetest.NewEvidence(t)
	for name, ask := range map[string]sourcetest.Answer{"Check": src.Check, "Fetch": src.Fetch} {
		if v, err := ask(t.Context(), ev); !errors.Is(err, sources.ErrNeedsChallenge) {
			t.Errorf("%s before the challenge: %+v, %v", name, v, err)
		}
		v, err := ask(t.Context(), sourcetest.Proven(ev))
		if err != nil || v.Listed || !strings.Contains(v.Reason, "the machine has proved no DevID") {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

// Every certificate that is not a DevID's is refused even if a configured CA has signed it and its
// key was proved. A CA certificate could otherwise issue DevIDs of its own, and a SHA-1 signature
// could be from another certificate.
func TestWhichLeaves(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := newRootWithKey(t, "Root", key)
	src := trusting(t, root)
	critical := func(id ...int) edit {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, certstest.Extension(t, true, id, []int{1}))
		}
	}
	for name, c := range map[string]struct {
		edit edit
		why  string // empty: it is listed
	}{
		"a DevID":           {func(*x509.Certificate) {}, ""},
		"no key usage":      {func(c *x509.Certificate) { c.KeyUsage = 0 }, ""},
		"more usages":       {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }, ""},
		"no alternative":    {func(c *x509.Certificate) { c.ExtraExtensions = nil }, ""},
		"no constraints":    {func(c *x509.Certificate) { c.BasicConstraintsValid = false }, ""},
		"for web clients":   {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, ""},
		"for key agreement": {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, "key usage that does not allow digital"},
		"a CA's":            {func(c *x509.Certificate) { c.IsCA = true }, "is a CA certificate"},
		"may sign":          {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "is a CA certificate"},
		"expired":           {func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Second) }, "has expired on 2026-06-01"},
		"of tomorrow":       {func(c *x509.Certificate) { c.NotBefore = certstest.Today().AddDate(0, 0, 1) }, "is not valid before 2026-06-02"},
		"by SHA-1":          {func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }, "is signed with SHA1-RSA"},
		"an unknown demand": {critical(1, 2, 3), "has the critical extension 1.2.3"},
		"a long serial":     {func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 1000) }, "serial number"},
	} {
		t.Run(name, func(t *testing.T) {
			ev := proven(t, root.devID(t, certstest.NewKey(t).Public(), c.edit))
			if c.why == "" {
				wantListed(t, src, ev)
				return
			}
			wantNotListed(t, "the DevID certificate ", src, ev)
			wantNotListed(t, c.why, src, ev)
		})
	}
	wantNotListed(t, "is a CA certificate", src, proven(t, root.sub(t, "Sub").cert))
	wantNotListed(t, "is a CA certificate", src, proven(t, root.cert))
}

// The machine can re-encode its certificate around what its CA has signed, as far as a parser
// permits: with another fingerprint after each ban, and so with another SPIFFE ID if that is formed
// from the fingerprint. A certificate has only one encoding, except for the two signatures that
// ECDSA permits for each (see the threat model). The same applies to the certificates above it.
func TestWrittenAnew(t *testing.T) {
	root := newRoot(t, "Root")
	sub := root.sub(t, "Sub")
	leaf, below := root.devID(t, certstest.NewKey(t).Public()), sub.devID(t, certstest.NewKey(t).Public())
	src := trusting(t, root)
	wantListed(t, src, proven(t, leaf))
	wantListed(t, src, proven(t, below, sub.cert))
	for how, anew := range map[string]func(c *certificate){
		"unused bits": func(c *certificate) {
			shifted := new(big.Int).Lsh(new(big.Int).SetBytes(c.Signature.Bytes), 1) // it begins with 30: there is room
			c.Signature = asn1.BitString{Bytes: shifted.Bytes(), BitLength: c.Signature.BitLength - 1}
		},
		"bytes behind its signature": func(c *certificate) { c.Behind.FullBytes = []byte{asn1.TagNull, 0} },
	} {
		wantNotListed(t, "has "+how, src, proven(t, rewritten(t, leaf, anew)))
		wantNotListed(t, "no configured CA", src, proven(t, below, rewritten(t, sub.cert, anew)))
	}
}

// certificate is one as far as its signature is concerned, and what may stand behind that.
type certificate struct {
	TBS, Algorithm asn1.RawValue
	Signature      asn1.BitString
	Behind         asn1.RawValue `asn1:"optional"`
}

// rewritten returns c in another encoding.
func rewritten(t *testing.T, c *x509.Certificate, anew func(c *certificate)) *x509.Certificate {
	t.Helper()
	var in certificate
	if _, err := asn1.Unmarshal(c.Raw, &in); err != nil {
		t.Fatal(err)
	}
	anew(&in)
	got, err := x509.ParseCertificate(marshal(t, in))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got.Raw, c.Raw) || !bytes.Equal(got.RawTBSCertificate, c.RawTBSCertificate) ||
		!bytes.Equal(got.Signature, c.Signature) {
		t.Fatal("not the same certificate in another encoding")
	}
	return got
}

// An EK certificate is not a DevID, whichever CA issued it: its key cannot have signed.
func TestAnEKCertificate(t *testing.T) {
	root := newRoot(t, "Root")
	ek := root.devID(t, certstest.NewKey(t).Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
	wantNotListed(t, "key usage", trusting(t, root), proven(t, ek))
}

// A machine chooses what it sends besides its certificate. That may link a DevID to a configured CA
// if all of it is as it should be, but is never trusted because it was sent.
func TestChains(t *testing.T) {
	root, other := newRoot(t, "Root"), newRoot(t, "Other")
	low := root.sub(t, "Low")
	expired := root.sub(t, "Expired", func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Hour) })
	narrow := root.sub(t, "Narrow", func(c *x509.Certificate) { c.MaxPathLenZero = true })
	own := certstest.NewKey(t)
	key := own.Public()
	leaf := low.devID(t, key)
	imposter := newRoot(t, "Low", func(c *x509.Certificate) { c.SubjectKeyId = low.cert.SubjectKeyId })
	many := make([]*x509.Certificate, 15)
	for i := range many {
		many[i] = root.sub(t, "Low").cert
	}
	for name, c := range map[string]struct {
		anchor *authority
		leaf   *x509.Certificate
		above  []*x509.Certificate
		why    string // empty: it is listed
	}{
		"a root, the rest sent":      {root, leaf, []*x509.Certificate{low.cert}, ""},
		"an intermediate CA alone":   {low, leaf, nil, ""},
		"all sent, in another order": {root, leaf, []*x509.Certificate{root.cert, low.cert}, ""},
		"16 certificates":            {root, leaf, append(slices.Clone(many[:14]), low.cert), ""},
		"nothing sent":               {root, leaf, nil, `no configured CA has issued the DevID certificate, whose issuer is "CN=Low,O=Test"`},
		"another root":               {other, leaf, []*x509.Certificate{low.cert, root.cert}, "no configured CA"},
		"its own root":               {other, imposter.devID(t, key), []*x509.Certificate{imposter.cert}, "no configured CA"},
		"a CA of the same name":      {low, imposter.devID(t, key), []*x509.Certificate{imposter.cert}, "no configured CA"},
		"an expired intermediate CA": {root, expired.devID(t, key), []*x509.Certificate{expired.cert}, `the certificate of the CA "CN=Expired,O=Test" has expired on`},
		"a chain too long":           {root, narrow.sub(t, "Sub").devID(t, key), []*x509.Certificate{narrow.cert}, "no configured CA"},
		"below a DevID":              {root, (&authority{cert: leaf, key: own}).devID(t, key), []*x509.Certificate{leaf, low.cert}, "no configured CA"},
		"15 CAs of one name":         {root, leaf, many, "no configured CA"},
	} {
		t.Run(name, func(t *testing.T) {
			src, ev := trusting(t, c.anchor), proven(t, c.leaf, c.above...)
			if c.why == "" {
				wantListed(t, src, ev)
				return
			}
			wantNotListed(t, c.why, src, ev)
		})
	}
}

// As with AMD's CAs, a certificate may name its issuer in another string type than the issuer
// itself.
func TestNamesByMeaning(t *testing.T) {
	root := newRoot(t, "Device CA")
	named := *root.cert
	named.RawSubject = marshal(t, pkix.RDNSequence{
		{{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("test")}}},
		{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("Device  CA")}}},
	})
	leaf := (&authority{cert: &named, key: root.key}).devID(t, certstest.NewKey(t).Public())
	if bytes.Equal(leaf.RawIssuer, root.cert.RawSubject) {
		t.Fatal("the names are the same")
	}
	wantListed(t, trusting(t, root), proven(t, leaf))
}

// A certificate that is not for the key that was proved says nothing about the machine, so the
// source cannot tell. Package attestor refuses such certificates.
func TestAnotherKey(t *testing.T) {
	root := newRoot(t, "Root")
	ev := proven(t, root.devID(t, certstest.NewKey(t).Public()))
	ev.Proof.DevID.Key = certstest.NewKey(t).Public()
	if v, err := trusting(t, root).Check(t.Context(), ev); err == nil || !strings.Contains(err.Error(), "is not the DevID's") {
		t.Errorf("%+v, %v", v, err)
	}
}

// A certificate that cannot be parsed is reported as such, and never as absent: an operator would
// look for a DevID that is there. The certificates are those that cost a server most.
func TestUnreadable(t *testing.T) {
	root := newRoot(t, "Root")
	leaf := root.devID(t, certstest.NewKey(t).Public())
	src := trusting(t, root)
	fat := root.devID(t, certstest.NewKey(t).Public(), func(c *x509.Certificate) {
		c.Extensions, c.ExtraExtensions = nil, []pkix.Extension{{Id: []int{1, 2, 3}, Value: make([]byte, 64<<10)}}
	})
	lace := root.devID(t, certstest.NewKey(t).Public(), func(c *x509.Certificate) {
		for range 600 {
			c.Subject.ExtraNames = append(c.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: []int{2, 5, 4, 11}, Value: "u"})
		}
	})
	for name, der := range map[string][]byte{
		"cut off": leaf.Raw[:len(leaf.Raw)-1], "with more behind it": append(bytes.Clone(leaf.Raw), 0),
		"nothing": {}, "no DER": []byte("certificate"), "of 64 KiB": fat.Raw, "of many values": lace.Raw,
	} {
		t.Run(name, func(t *testing.T) {
			ev := proven(t, leaf)
			ev.Proof.DevID.Chain[0] = der
			wantNotListed(t, "the DevID certificate that the machine has sent cannot be read: ", src, ev)
			low := root.sub(t, "Low")
			ev = proven(t, low.devID(t, certstest.NewKey(t).Public()), low.cert) // beside it, nothing goes wrong
			ev.Proof.DevID.Chain = append(ev.Proof.DevID.Chain, der, der)
			wantListed(t, src, ev)
		})
	}
}

// CRLs count as for EK certificates: a machine whose certificate, or a CA certificate above it, is
// revoked is refused, and under "required" nobody is admitted unchecked.
func TestRevocation(t *testing.T) {
	web := newSite(t)
	at := func(path string) edit {
		return func(c *x509.Certificate) { c.CRLDistributionPoints = []string{web.server.URL + path} }
	}
	root := newRoot(t, "Root")
	low, lost := root.sub(t, "Low", at("/root")), root.sub(t, "Lost", at("/root"))
	good, bad := low.devID(t, certstest.NewKey(t).Public(), at("/low")), low.devID(t, certstest.NewKey(t).Public(), at("/low"))
	orphan := lost.devID(t, certstest.NewKey(t).Public(), at("/lost"))
	silent := low.devID(t, certstest.NewKey(t).Public(), at("/silent"))
	web.put("/root", root.crl(t, lost.cert))
	web.put("/low", low.crl(t, bad))
	web.put("/lost", lost.crl(t))
	for _, mode := range []certs.CRLMode{certs.CRLIfAvailable, certs.CRLRequired} {
		src := load(t, devid.Config{CAPath: certstest.File(t, certsOf(root)...), AIAHosts: []string{web.host()}, CRL: mode})
		for name, c := range map[string]struct {
			ev       *sources.Evidence
			reason   string // empty: cannot tell
			listed   bool
			required bool // the same under "required"
		}{
			"good":              {proven(t, good, low.cert), "chains to a configured CA", true, true},
			"revoked":           {proven(t, bad, low.cert), "the DevID certificate has been revoked, according to the CRL at", false, true},
			"its CA is revoked": {proven(t, orphan, lost.cert), `the certificate of the CA "CN=Lost,O=Test" has been revoked`, false, true},
			"no CRL":            {proven(t, silent, low.cert), "whether the DevID certificate is revoked is not known", true, false},
		} {
			v, err := src.Fetch(t.Context(), c.ev)
			unsure := mode == certs.CRLRequired && !c.required
			if (err != nil) != unsure || v.Listed != (c.listed && !unsure) || !unsure && !strings.Contains(v.Reason, c.reason) {
				t.Errorf("%s, %s: %+v, %v", mode, name, v, err)
			}
		}
	}
}

// An issuer that should be fetched but cannot be is not a fact about the machine, which is told to
// retry. No host that the operator has not named is contacted.
func TestIssuerCannotBeHad(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	at := func(url string) edit {
		return func(c *x509.Certificate) { c.IssuingCertificateURL = []string{url} }
	}
	leaf := low.devID(t, certstest.NewKey(t).Public(), at(web.server.URL+"/low"))
	src := load(t, devid.Config{CAPath: certstest.File(t, certsOf(root)...), AIAHosts: []string{web.host()}, Now: web.clock})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if v, err := src.Fetch(ctx, proven(t, leaf)); err == nil {
		t.Errorf("%+v", v)
	}
	web.put("/low", low.cert.Raw)
	web.pass(time.Hour)
	if v, err := src.Fetch(ctx, proven(t, leaf)); err != nil || !v.Listed {
		t.Errorf("once it is there: %+v, %v", v, err)
	}
	elsewhere := low.devID(t, certstest.NewKey(t).Public(), at("http://pki.example.org/low"))
	wantNotListed(t, "not requested from", src, proven(t, elsewhere))
	wantNotListed(t, "aia_hosts is empty", trusting(t, root), proven(t, leaf))
}

// All mistakes in a configuration are reported at once, each with its field.
func TestNewRefuses(t *testing.T) {
	_, err := devid.New(devid.Config{CRL: "always", MirrorURL: "http://mirror", CachePath: "x.db", PollInterval: -1})
	for _, want := range []string{"ca_path write either", "crl must be one of", "mirror_url replaces", "cache_path nothing is fetched", "poll_interval is"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

// When a CA certificate is removed, none of its machines are listed from then on: a source that
// still trusted the CA would admit whatever it goes on issuing.
func TestCAWithdrawn(t *testing.T) {
	dir, one, two := t.TempDir(), newRoot(t, "One"), newRoot(t, "Two")
	certstest.Write(t, filepath.Join(dir, "one.pem"), certstest.PEM(certsOf(one)...))
	der, _ := pem.Decode(certstest.PEM(certsOf(two)...))
	certstest.Write(t, filepath.Join(dir, "two.der"), der.Bytes)
	src := load(t, devid.Config{CAPath: dir})
	ev := proven(t, one.devID(t, certstest.NewKey(t).Public()))
	wantListed(t, src, ev)
	wantListed(t, src, proven(t, two.devID(t, certstest.NewKey(t).Public())))
	if err := os.Remove(filepath.Join(dir, "one.pem")); err != nil {
		t.Fatal(err)
	}
	if err := src.Load(t.Context()); err != nil || src.Status().Entries != 1 {
		t.Fatalf("%v, %+v", err, src.Status())
	}
	wantNotListed(t, "no configured CA", src, ev)
}
