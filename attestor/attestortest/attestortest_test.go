package attestortest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// failure is a TB that records failures.
type failure struct{ failed, skipped bool }

func (*failure) Helper()                 {}
func (f *failure) Fatalf(string, ...any) { f.failed = true }
func (f *failure) Skipf(string, ...any)  { f.skipped = true }

// If the real certificates are required and missing, a test that needs them fails:
// otherwise a CI that has lost them would pass without testing them.
func TestFieldCertificates(t *testing.T) {
	base := t.TempDir()
	there := filepath.Join(base, "ek")
	for _, name := range []string{there, there + "-more", filepath.Join(base, "cases"), filepath.Join(base, "eventlog")} {
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		dir, require string
		want         failure
	}{
		{there, "", failure{}},
		{there, "1", failure{}},
		{there + "/none/none", "", failure{skipped: true}},
		{there + "/none/none", "1", failure{failed: true}},
		{there + "/none/none", "true", failure{failed: true}},
		{"attestortest_test.go", "1", failure{failed: true}},
	} {
		t.Setenv("EK_TESTDATA", test.dir)
		t.Setenv("REQUIRE_EK_TESTDATA", test.require)
		for name, folder := range map[string]func(attestortest.SkipTB) string{
			there:                           attestortest.FieldCertificates,
			there + "-more":                 attestortest.MoreFieldCertificates,
			filepath.Join(base, "cases"):    attestortest.FieldCases,
			filepath.Join(base, "eventlog"): attestortest.EventLogs,
		} {
			var got failure
			dir := folder(&got)
			if got != test.want || (dir == name) != (got == failure{}) {
				t.Errorf("%+v: %q, %+v", test, dir, got)
			}
		}
	}
}

// A TPM in software attests like a TPM in hardware, with every type of key.
func TestTPM(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	for _, o := range []attestortest.Options{
		{},
		{Number: 10, AK: attestor.RSA2048, CA: ca, Certificate: attestortest.Certificate{OAEP: true}},
		{EK: attestor.RSA3072, AK: attestor.RSA3072, PSS: true},
		{EK: attestor.RSA4096, AK: attestor.P521},
		{EK: attestor.P256, HighRange: true, Number: 12345, CA: ca},
		{EK: attestor.P384, AK: attestor.P384},
		{EK: attestor.P521},
	} {
		tpm := attestortest.New(t, o)
		var v attestor.Verifier
		s, err := v.Begin(tpm.Payload(t))
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if hex.EncodeToString(s.EK().Hash[:]) != tpm.EKHash() {
			t.Errorf("%+v: the hash %x, want %s", o, s.EK().Hash, tpm.EKHash())
		}
		challenge, err := s.Challenge(attestor.Ask{})
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if _, err := s.Finish(tpm.Answer(t, challenge)); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		if pub, ok := tpm.EKPrivate().Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(s.EK().Public) {
			t.Errorf("%+v: another private key", o)
		}
	}
}

// TPMs with the same number have the same EK, and others do not.
func TestNumbers(t *testing.T) {
	t.Parallel()
	hash := func(kind attestor.KeyType, number int) string {
		return attestortest.New(t, attestortest.Options{EK: kind, Number: number}).EKHash()
	}
	for _, kind := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384, attestor.P521} {
		one, again, two := hash(kind, 1), hash(kind, 1), hash(kind, 2)
		if one != again || one == two {
			t.Errorf("%s: the numbers do not tell TPMs apart", kind)
		}
	}
	for _, o := range []attestortest.Options{{Number: 100}, {EK: "dsa"}, {AK: "dsa"}, {EK: attestor.RSA4096, Number: 1}} {
		var f failure
		if tpm := attestortest.New(&f, o); !f.failed || tpm != nil {
			t.Errorf("%+v: a TPM without a key", o)
		}
	}
}

// A TPM refuses credentials that are not for it, as a real TPM does. Otherwise a test in
// which a thief fails would prove nothing.
func TestActivateCredential(t *testing.T) {
	t.Parallel()
	for _, kind := range []attestor.KeyType{attestor.RSA2048, attestor.P256} {
		tpm := attestortest.New(t, attestortest.Options{EK: kind})
		ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](tpm.Claim().EKPublic)
		if err != nil {
			t.Fatal(err)
		}
		ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](tpm.Claim().AK.Public)
		if err != nil {
			t.Fatal(err)
		}
		name, err := tpm2.ObjectName(ak)
		if err != nil {
			t.Fatal(err)
		}
		key, err := tpm2.ImportEncapsulationKey(ek)
		if err != nil {
			t.Fatal(err)
		}
		id, seed, err := tpm2.CreateCredential(random{}, key, name.Buffer, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tpm.ActivateCredential(id, seed); err != nil || string(got) != "secret" {
			t.Fatalf("%s: %q, %v", kind, got, err)
		}
		for name, c := range map[string][2][]byte{
			"nothing":         {nil, nil},
			"no credential":   {nil, seed},
			"no seed":         {id, nil},
			"a cut seed":      {id, seed[:len(seed)-1]},
			"half a seed":     {id, seed[:len(seed)/2]},
			"a long seed":     {id, append(bytes.Clone(seed), 0)},
			"another seed":    {id, spoil(seed, len(seed)-1)},
			"a seed of zeros": {id, make([]byte, len(seed))},
			"a cut MAC":       {id[:10], seed},
			"another MAC":     {spoil(id, 5), seed},
			"another secret":  {spoil(id, len(id)-1), seed},
		} {
			if got, err := tpm.ActivateCredential(c[0], c[1]); err == nil {
				t.Errorf("%s: %s: %q", kind, name, got)
			}
		}
	}
}

func spoil(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// random is random enough for a seed that nobody guesses here.
type random struct{}

func (random) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(i)
	}
	return len(b), nil
}

// An EK certificate conforms to the profile and has a chain to its CA.
func TestCA(t *testing.T) {
	t.Parallel()
	root := attestortest.NewCA(t, "root")
	sub := root.NewCA(t, "sub")
	if err := sub.Certificate.CheckSignatureFrom(root.Certificate); err != nil {
		t.Error(err)
	}
	if !bytes.HasPrefix(root.PEM(), []byte("-----BEGIN CERTIFICATE-----\n")) {
		t.Errorf("PEM: %s", root.PEM())
	}
	changed := false
	tpm := attestortest.New(t, attestortest.Options{CA: sub, Certificate: attestortest.Certificate{
		OAEP:   true,
		Change: func(*x509.Certificate) { changed = true },
	}})
	cert, err := attestor.ParseEKCertificate(tpm.Claim().Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(sub.Certificate); err != nil || !changed {
		t.Errorf("changed %t, %v", changed, err)
	}
	profile := asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	if len(cert.UnknownExtKeyUsage) != 1 || !cert.UnknownExtKeyUsage[0].Equal(profile) || cert.IsCA {
		t.Errorf("extended key usages %v, CA %t", cert.UnknownExtKeyUsage, cert.IsCA)
	}
	var f failure
	root.Issue(&f, ed25519.PublicKey(make([]byte, 32)), attestortest.Certificate{OAEP: true})
	if !f.failed {
		t.Error("OAEP for a key that is not RSA")
	}
	f.failed = false
	if root.Issue(&f, nil, attestortest.Certificate{}); !f.failed {
		t.Error("a certificate for no key")
	}
}

// Tests of revocation rely on this: the CRL is signed by the CA, current, and has the right
// serial numbers, and a CA's certificate has the URL of its issuer.
func TestRevocation(t *testing.T) {
	t.Parallel()
	root := attestortest.NewCA(t, "root")
	sub := root.NewCAWith(t, "sub", func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://pki/root"} })
	if err := sub.Certificate.CheckSignatureFrom(root.Certificate); err != nil ||
		len(sub.Certificate.IssuingCertificateURL) != 1 {
		t.Errorf("%v, %q", err, sub.Certificate.IssuingCertificateURL)
	}
	list, err := x509.ParseRevocationList(sub.CRL(t, nil, big.NewInt(7)))
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(sub.Certificate); err != nil {
		t.Error(err)
	}
	revoked := list.RevokedCertificateEntries
	if len(revoked) != 1 || revoked[0].SerialNumber.Int64() != 7 || !list.NextUpdate.After(time.Now()) {
		t.Errorf("%+v", list)
	}
	var f failure
	if sub.CRL(&f, func(l *x509.RevocationList) { l.Number = nil }); !f.failed {
		t.Error("a list without a number")
	}
}

// A caller may change a claim without an effect on the TPM.
func TestClaim(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: attestortest.NewCA(t, "root")})
	before := tpm.Payload(t)
	c := tpm.Claim()
	for _, b := range [][]byte{
		c.EKPublic, c.Certificate, c.AK.Public, c.AK.CreateData, c.AK.CreateAttestation, c.AK.CreateSignature,
	} {
		b[0] ^= 1
	}
	if !bytes.Equal(tpm.Payload(t), before) {
		t.Error("a caller changed the TPM")
	}
	var f failure
	if tpm.Answer(&f, []byte("{}")); !f.failed {
		t.Error("an answer to no challenge")
	}
	forged := attestortest.New(t, attestortest.Options{
		EK: attestor.P256,
		ForgePublic: func(p *tpm2.TPMTPublic) {
			p.ObjectAttributes.Decrypt = true
		},
		ForgeCreation: func(d *tpm2.TPMSCreationData) { d.OutsideInfo.Buffer = []byte("forged") },
		ForgeAttest:   func(a *tpm2.TPMSAttest) { a.FirmwareVersion = 7 },
	}).Claim()
	if !bytes.Contains(forged.AK.CreateData, []byte("forged")) {
		t.Error("the creation data are not forged")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](forged.AK.Public)
	if err != nil || !public.ObjectAttributes.Decrypt {
		t.Errorf("the public area is not forged: %v", err)
	}
}

// A signature by a key in software has the form of a signature by a TPM.
func TestSignAK(t *testing.T) {
	t.Parallel()
	for _, kind := range []attestor.KeyType{attestor.RSA2048, attestor.P256} {
		key := attestortest.New(t, attestortest.Options{EK: kind}).EKPrivate()
		sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](attestortest.SignAK(t, key, []byte("message")))
		if err != nil {
			t.Fatal(err)
		}
		switch key.(type) {
		case *rsa.PrivateKey:
			_, err = sig.Signature.RSASSA()
		case *ecdsa.PrivateKey:
			_, err = sig.Signature.ECDSA()
		}
		if err != nil {
			t.Error(err)
		}
	}
	var f failure
	if attestortest.SignAK(&f, ed25519.NewKeyFromSeed(make([]byte, 32)), nil); !f.failed {
		t.Error("a signature by Ed25519")
	}
}
