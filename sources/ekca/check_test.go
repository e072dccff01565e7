package ekca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

func wantText(tb testing.TB, got, want string) {
	tb.Helper()
	if !strings.Contains(got, want) {
		tb.Errorf("got %q, want it to contain %q", got, want)
	}
}

// A configuration that could be read in two ways would trust what nobody meant
// to.
func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  ekca.Config
		want string
	}{
		"nothing":          {ekca.Config{}, "write either ca_path"},
		"no bundle":        {ekca.Config{Config: truststore.Config{Bundles: map[string]string{}}}, "write either ca_path"},
		"both":             {ekca.Config{Config: truststore.Config{CAPath: "/a", Bundles: map[string]string{"b": "/b"}}}, "write either ca_path"},
		"upper case":       {ekca.Config{Config: truststore.Config{Bundles: map[string]string{"STM": "/b"}}}, `bundles "STM"`},
		"empty name":       {ekca.Config{Config: truststore.Config{Bundles: map[string]string{"": "/b"}}}, `bundles ""`},
		"line behind name": {ekca.Config{Config: truststore.Config{Bundles: map[string]string{"a\n": "/b"}}}, `bundles "a\n"`},
		"empty path":       {ekca.Config{Config: truststore.Config{Bundles: map[string]string{"a": ""}}}, "a: is empty"},
		"negative":         {ekca.Config{Config: truststore.Config{CAPath: "/a", PollInterval: -1}}, "poll_interval is -1ns"},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := ekca.New(c.cfg)
			if err == nil || src != nil {
				t.Fatalf("New(%+v) = %v, %v", c.cfg, src, err)
			}
			wantText(t, err.Error(), c.want)
		})
	}
}

// New runs while SPIRE only validates a configuration: it may not read, and what
// the caller does to its map later may not change what is trusted.
func TestNewOnlyValidates(t *testing.T) {
	root := newRoot(t, "Root")
	bundles := map[string]string{"a": certstest.File(t, root.cert)}
	src := newSource(t, ekca.Config{Config: truststore.Config{Bundles: bundles}})
	if got := src.Status(); got.Entries != 0 || !got.Loaded.IsZero() || got.Warnings != nil {
		t.Errorf("Status before Load: %+v", got)
	}
	bundles["a"] = "/does/not/exist"
	if err := src.Load(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := ekca.New(ekca.Config{Config: truststore.Config{CAPath: "/does/not/exist"}}); err != nil {
		t.Errorf("New looked at the path: %v", err)
	}
}

// A source that has loaded nothing must not clear a machine under a deny rule.
func TestCheckCannotTellBeforeLoad(t *testing.T) {
	root := newRoot(t, "Root")
	ek := root.ek(t)
	src := newSource(t, ekca.Config{Config: truststore.Config{CAPath: "/does/not/exist"}})
	for range 2 {
		if v, err := src.Check(t.Context(), evidence(ek)); err == nil || v.Listed || v.Reason != "" {
			t.Fatalf("Check = %+v, %v", v, err)
		}
		if err := src.Load(t.Context()); err == nil {
			t.Fatal("Load of a path that does not exist succeeded")
		}
	}
}

// What a verified certificate says becomes selectors; this is their content.
func TestCheckAttributes(t *testing.T) {
	root := newRoot(t, "Root CA")
	ek := root.ek(t)
	spki, err := x509.MarshalPKIXPublicKey(root.cert.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(spki)
	want := &sources.EKCertificate{
		IssuerCN: "Root CA", IssuerKeyHash: hex.EncodeToString(hash[:]), Serial: "abc",
		Manufacturer: "id:54455354", Model: "model 1", Version: "id:0001",
	}
	got := wantListed(t, trusting(t, root), ek)
	if diff := cmp.Diff(want, got.Certificate); diff != "" {
		t.Error(diff)
	}
	if got.CAs != nil || got.Name != "" || got.Labels != nil {
		t.Errorf("attributes without bundles: %+v", got)
	}
}

// That a machine has no certificate is a fact, not a failure: a rule with other sources may still
// admit it.
func TestCheckWithoutCertificate(t *testing.T) {
	src := trusting(t, newRoot(t, "Root"))
	v, err := src.Check(t.Context(), &sources.Evidence{EK: certstest.NewKey(t).Public()})
	if err != nil || v.Listed {
		t.Errorf("Check = %+v, %v", v, err)
	}
}

// Stops a stolen certificate: it counts only for the key in it.
func TestCheckRefusesAnotherKey(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	ev := evidence(root.ek(t))
	ev.EK = certstest.NewKey(t).Public()
	if v, err := src.Check(t.Context(), ev); err == nil || v.Listed {
		t.Errorf("another EK: %+v, %v", v, err)
	}
	ev.EK = nil
	if v, err := src.Check(t.Context(), ev); err == nil || v.Listed {
		t.Errorf("no EK: %+v, %v", v, err)
	}
	ev = evidence(root.ek(t))
	ecPublicKey := []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01}
	unknown := []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x63}
	ev.Certificate = bytes.Replace(ev.Certificate, ecPublicKey, unknown, 1)
	if v, err := src.Check(t.Context(), ev); err == nil || v.Listed {
		t.Errorf("a certificate without a key: %+v, %v", v, err)
	}
}

// A caller that has gone gets no answer that could be taken for one.
func TestCheckStopsWithItsContext(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := src.Check(ctx, evidence(root.ek(t))); !errors.Is(err, context.Canceled) || v.Listed {
		t.Errorf("Check = %+v, %v", v, err)
	}
}

// Each row is a certificate by the configured CA that is not, or is, an EK's.
func TestCheckRulesForEKCertificates(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	unknown := asn1.ObjectIdentifier{1, 2, 3, 4}
	for name, c := range map[string]struct {
		edit edit
		want string // in the reason; empty where it vouches
	}{
		"expired": {func(c *x509.Certificate) {
			c.NotAfter = certstest.Today().Add(-time.Second)
		}, "has expired on 2026-06-01T11:59:59Z"},
		"to this second": {func(c *x509.Certificate) { c.NotAfter = certstest.Today() }, ""},
		"not yet valid":  {func(c *x509.Certificate) { c.NotBefore = certstest.Today().Add(6 * time.Minute) }, "is not valid before"},
		"to 9999": {func(c *x509.Certificate) {
			c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		}, ""},
		"a CA's": {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, "is a CA certificate"},
		"signs certificates": {func(c *x509.Certificate) {
			c.BasicConstraintsValid, c.KeyUsage = false, x509.KeyUsageCertSign|x509.KeyUsageKeyAgreement
		}, "is a CA certificate"},
		"no basic constraints": {func(c *x509.Certificate) { c.BasicConstraintsValid = false }, ""},
		"for signatures":       {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, "key usage"},
		"enciphers keys":       {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, ""},
		"no key usage":         {func(c *x509.Certificate) { c.KeyUsage = 0 }, ""},
		"for an AK":            {func(c *x509.Certificate) { c.UnknownExtKeyUsage[0][4] = 3 }, "extended key usage"},
		"for TLS": {func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, "extended key usage"},
		"for anything": {func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		}, ""},
		"no extended key usage": {func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }, ""},
		"unknown critical extension": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, certstest.Extension(t, true, unknown, 1))
		}, "critical extension 1.2.3.4"},
		"unknown extension": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, certstest.Extension(t, false, unknown, 1))
		}, ""},
		"critical policies": {func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions,
				certstest.Extension(t, true, asn1.ObjectIdentifier{2, 5, 29, 32}, [][]asn1.ObjectIdentifier{{unknown}}))
		}, ""},
		"no alternative name": {func(c *x509.Certificate) { c.ExtraExtensions = nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if ek := root.ek(t, c.edit); c.want == "" {
				wantListed(t, src, ek)
			} else {
				wantNotListed(t, c.want, src, ek)
			}
		})
	}
}

// Stops a certificate whose signature somebody could have forged, on the EK's
// certificate and above it.
func TestCheckRefusesWeakSignatures(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := newRootWithKey(t, "Root", key, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA256WithRSA })
	src := trusting(t, root)
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }
	wantNotListed(t, "SHA1-RSA", src, root.ek(t, sha1))
	wantNotListed(t, "no configured CA", src, root.sub(t, "Sub").ek(t), root.sub(t, "Sub", sha1).cert)

	for _, alg := range []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSAPSS} {
		wantListed(t, src, root.ek(t, func(c *x509.Certificate) { c.SignatureAlgorithm = alg }))
	}
}

// The same, where the weakly signed CA certificate would otherwise join.
func TestCheckRefusesWeakJoiner(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := newRootWithKey(t, "Root", key)
	src := trusting(t, root)
	subKey := certstest.NewKey(t)
	good := root.subWithKey(t, "Sub", subKey)
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA }
	weak := root.subWithKey(t, "Sub", subKey, sha1)
	ek := good.ek(t)
	wantListed(t, src, ek, good.cert)
	wantNotListed(t, "no configured CA", src, ek, weak.cert)
}

// A changed bit anywhere in what was signed, or in the signature, must show.
func TestCheckRefusesAChangedCertificate(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	ek := root.ek(t)
	wantListed(t, src, ek)
	refused := 0
	for i := range ek.Raw {
		der := append([]byte(nil), ek.Raw...)
		der[i] ^= 0x01
		changed, err := x509.ParseCertificate(der)
		if err != nil {
			continue
		}
		refused++
		if v, err := src.Check(t.Context(), evidence(changed)); err == nil && v.Listed {
			t.Errorf("listed with byte %d changed", i)
		}
	}
	if refused < 100 {
		t.Errorf("only %d changes could be parsed", refused)
	}
}

// The clock of a server may jump, back and forth: dates are those of the moment.
func TestCheckFollowsTheClock(t *testing.T) {
	now := certstest.Today()
	root := newRoot(t, "Root")
	path := certstest.File(t, root.cert)
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: path, Now: func() time.Time { return now }}})
	ek := root.ek(t)
	wantListed(t, src, ek)
	now = certstest.Today().AddDate(20, 0, 0)
	wantNotListed(t, "has expired", src, ek)
	now = certstest.Today().AddDate(-20, 0, 0)
	wantNotListed(t, "is not valid before", src, ek)
	now = certstest.Today()
	wantListed(t, src, ek)
}

// A server that booted with a wrong clock loads CAs that have "expired". They must be used when the
// clock is right, without a change to the files.
func TestCAsLoadedWithAWrongClock(t *testing.T) {
	now := certstest.Today().AddDate(5, 0, 0)
	long := newRoot(t, "Long", func(c *x509.Certificate) { c.NotAfter = certstest.Today().AddDate(50, 0, 0) })
	short := newRoot(t, "Short", func(c *x509.Certificate) { c.NotAfter = certstest.Today().AddDate(1, 0, 0) })
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, long.cert, short.cert), Now: func() time.Time { return now }}})
	if got := src.Status(); got.Entries != 1 || len(got.Warnings) != 1 {
		t.Errorf("Status = %+v", got)
	}
	ek := short.ek(t)
	wantNotListed(t, "no configured CA", src, ek)
	now = certstest.Today()
	wantListed(t, src, ek)
}

// Stops keys that could be computed from their certificates, and algorithms that nobody has
// reviewed, in configured certificates and in those that a machine sends.
func TestWeakCAKeys(t *testing.T) {
	strong := newRoot(t, "Strong")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa1024, p224 := newRootWithKey(t, "RSA 1024", small), newRootWithKey(t, "P-224", curve)
	src := trusting(t, strong, rsa1024, p224)
	warnings := strings.Join(src.Status().Warnings, "\n")
	wantText(t, warnings, "has an RSA key of 1024 bits")
	wantText(t, warnings, "has an elliptic-curve key of 224 bits")
	wantNotListed(t, "no configured CA", src, rsa1024.ek(t))
	wantNotListed(t, "no configured CA", src, p224.ek(t))
	sub := strong.subWithKey(t, "Sub", small)
	wantNotListed(t, "no configured CA", src, sub.ek(t), sub.cert)
}

// A reason is read by people in a log: what a stranger writes into a name may
// neither break the line nor fill the disk.
func TestReasonIsQuotedAndShort(t *testing.T) {
	stranger := newRoot(t, "evil\nlevel=info msg=admitted "+strings.Repeat("x", 5000))
	v := check(t, trusting(t, newRoot(t, "Root")), stranger.ek(t))
	if v.Listed || len(v.Reason) > 500 || strings.Contains(v.Reason, "\n") {
		t.Errorf("reason of %d bytes: %.600s", len(v.Reason), v.Reason)
	}
}

// The profile requires X.509 v3: a v1 certificate cannot say that it is not a CA's.
func TestCheckRefusesVersion1(t *testing.T) {
	root := newRoot(t, "Root")
	ek := version1(t, root, pkix.Name{CommonName: "TPM"}.ToRDNSequence(), certstest.NewKey(t))
	wantNotListed(t, "X.509 version 1", trusting(t, root), ek)
}

// A v1 certificate of a root CA is an anchor if an operator configures it; one that is not a
// root's, or that a machine sends, is not used.
func TestVersion1CAs(t *testing.T) {
	key := certstest.NewKey(t)
	template := &authority{cert: certstest.CA(t, "Old"), key: key}
	template.cert.RawSubject = certstest.Marshal(t, template.cert.Subject.ToRDNSequence())
	template.cert.PublicKey = key.Public()
	old := &authority{cert: version1(t, template, template.cert.Subject.ToRDNSequence(), key), key: key}
	wantListed(t, trusting(t, old), old.ek(t))

	root := newRoot(t, "Root")
	subKey := certstest.NewKey(t)
	sub := &authority{cert: version1(t, root, pkix.Name{CommonName: "Sub"}.ToRDNSequence(), subKey), key: subKey}
	src := trusting(t, root, sub)
	wantText(t, strings.Join(src.Status().Warnings, "\n"), "version 1 and is not a root")
	wantNotListed(t, "no configured CA", src, sub.ek(t), sub.cert)

	// One that looks like a root's, by the configured CA of that name.
	key = certstest.NewKey(t)
	same := &authority{cert: version1(t, root, root.cert.Subject.ToRDNSequence(), key), key: key}
	wantNotListed(t, "no configured CA", src, same.ek(t), same.cert)
}

// version1 returns an X.509 v1 certificate that parent has signed.
func version1(
	tb testing.TB, parent *authority, subject pkix.RDNSequence, key *ecdsa.PrivateKey,
) *x509.Certificate {
	tb.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	alg := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	tbs := certstest.Marshal(tb, struct {
		Serial    *big.Int
		Algorithm pkix.AlgorithmIdentifier
		Issuer    asn1.RawValue
		Validity  struct{ From, To time.Time }
		Subject   pkix.RDNSequence
		Key       asn1.RawValue
	}{
		Serial: big.NewInt(7), Algorithm: alg, Issuer: asn1.RawValue{FullBytes: parent.cert.RawSubject},
		Validity: struct{ From, To time.Time }{certstest.Today().AddDate(-1, 0, 0), certstest.Today().AddDate(1, 0, 0)},
		Subject:  subject, Key: asn1.RawValue{FullBytes: spki},
	})
	digest := sha256.Sum256(tbs)
	signature, err := parent.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err == nil {
		var cert *x509.Certificate
		cert, err = x509.ParseCertificate(certstest.Marshal(tb, struct {
			TBS       asn1.RawValue
			Algorithm pkix.AlgorithmIdentifier
			Signature asn1.BitString
		}{asn1.RawValue{FullBytes: tbs}, alg, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}))
		if err == nil {
			return cert
		}
	}
	tb.Fatal(err)
	return nil
}

// Stops a fleet's lock-out and its opposite: a certificate that a machine has sent and
// that is no longer there is not an absent one, which a deny rule would clear.
func TestCheckOfIncompleteEvidence(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	ev := evidence(root.ek(t))
	ev.Certificate, ev.Incomplete = nil, true
	v, err := src.Check(t.Context(), ev)
	if err == nil || v.Listed {
		t.Fatalf("%+v, %v", v, err)
	}
	wantText(t, err.Error(), "were not kept")
}

// Check is of the whole configuration, and not only of the part that it shares with other sources: otherwise
// validate would call a configuration good that no server takes.
func TestCheckIsOfTheWhole(t *testing.T) {
	t.Parallel()
	cfg := ekca.Config{Config: truststore.Config{CAPath: "/a"}, EKCertificateURLs: map[string]string{"acme": "https://acme/"}}
	if err := cfg.Check(); err == nil || !strings.Contains(err.Error(), "not a known EK certificate service") {
		t.Error(err)
	}
}
