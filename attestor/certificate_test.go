package attestor_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// The header and the padding of a certificate in NV memory are removed; anything else before the
// certificate is refused. Padding may be any bytes: otherwise a vendor's padding that is not known
// yet would hide the certificate.
func TestEKCertificateAsStored(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	der := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca}).Claim().Certificate
	header := []byte{0x10, 0x01, 0x00, byte(len(der) >> 8), byte(len(der))}
	cat := slices.Concat[[]byte]
	pad := func(c byte, n int) []byte { return bytes.Repeat([]byte{c}, n) }
	for name, b := range map[string][]byte{
		"alone":                 der,
		"header":                cat(header, der),
		"header and two bytes":  cat(header, []byte{0x10, 0x02}, der),
		"header and padding":    cat(header, der, pad(0, 100)),
		"header of another len": cat([]byte{0x10, 0x01, 0x00, 0, 7}, der),
		"zeros":                 cat(der, pad(0, 1)),
		"many zeros":            cat(der, pad(0, 7000)),
		"ones":                  cat(der, pad(0xFF, 431)),
		"ones and zeros":        cat(der, pad(0xFF, 16), pad(0, 16)),
		"a vendor's padding":    cat(der, pad(0x11, 192)),
		"a byte behind zeros":   cat(der, pad(0, 8), []byte{1}),
		"another behind it":     cat(der, der),
	} {
		cert, err := attestor.ParseEKCertificate(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(cert.Raw, der) {
			t.Errorf("%s: another certificate", name)
		}
	}
	for name, b := range map[string][]byte{
		"nothing":                  nil,
		"a header alone":           header,
		"half a header":            header[:4],
		"a header of another type": cat([]byte{0x10, 0x01, 0x01}, header[3:], der),
		"two headers":              cat(header, header, der),
		"zeros alone":              pad(0, 100),
		"zeros before":             cat(pad(0, 1), der),
		"cut":                      der[:len(der)-1],
		"cut to its header":        der[:4],
		"too much padding":         cat(der, pad(0, 8192)),
		"a set":                    cat([]byte{0x31}, der[1:]),
		"a length without end":     {0x30, 0x80, 0, 0},
		"a huge length":            cat([]byte{0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF}, der),
		"an empty sequence":        {0x30, 0x00},
		"PEM":                      ca.PEM(),
	} {
		if cert, err := attestor.ParseEKCertificate(b); err == nil || cert != nil {
			t.Errorf("%s: %v, %v, want an error", name, cert, err)
		}
	}
}

// An RSA key that its certificate reserves for OAEP or PSS is the same key, with
// the same hash.
func TestEKCertificateForOAEP(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{CA: ca, Certificate: attestortest.Certificate{OAEP: true}})
	der := tpm.Claim().Certificate
	oid := []byte{0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x07}
	if bytes.Count(der, oid) != 1 {
		t.Fatal("the certificate is not for OAEP")
	}
	check := func(name string, der []byte) *x509.Certificate {
		cert, err := attestor.ParseEKCertificate(der)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		key, ok := cert.PublicKey.(*rsa.PublicKey)
		if !ok || !key.Equal(tpm.Claim().EK) || cert.PublicKeyAlgorithm != x509.RSA {
			t.Errorf("%s: the key %v, %v", name, cert.PublicKey, cert.PublicKeyAlgorithm)
		}
		return cert
	}
	if err := check("OAEP", der).CheckSignatureFrom(ca.Certificate); err != nil {
		t.Errorf("the signature is no longer good: %v", err)
	}
	change := func(last byte) []byte {
		b := bytes.Clone(der)
		b[bytes.Index(b, oid)+len(oid)-1] = last
		return b
	}
	check("PSS", change(10))
	cert, err := attestor.ParseEKCertificate(change(99))
	if err != nil || cert.PublicKey != nil {
		t.Errorf("a key of an unknown algorithm: %v, %v", cert, err)
	}
	// The key itself is spoiled.
	b := bytes.Clone(der)
	at := bytes.Index(b, oid) + len(oid) + 2 + 5 // NULL, BIT STRING
	b[at] ^= 0xFF
	if cert, err := attestor.ParseEKCertificate(b); err == nil && cert.PublicKey != nil {
		t.Errorf("a spoiled key: %v", cert.PublicKey)
	}

	m := membersOf(t, tpm)
	m["EK"] = pemForms(t, attestor.Claim{EK: tpm.Claim().EK, Certificate: change(99)})["certificate"]
	var v attestor.Verifier
	refused(t, &v, m.encode(t), "unknown algorithm")
}

// Real certificates break rules that do not matter here: a set that is not in order, a URL
// with blanks, no end, an empty subject.
func TestEKCertificateQuirks(t *testing.T) {
	t.Parallel()
	set, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: unorderedName(t),
	}})
	if err != nil {
		t.Fatal(err)
	}
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{CA: ca, Certificate: attestortest.Certificate{
		Change: func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: san, Critical: true, Value: set}}
			c.IssuingCertificateURL = []string{"http://pki.example/ a certificate.crt"}
			c.NotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
		},
	}})
	cert, err := attestor.ParseEKCertificate(begin(t, tpm).EK().Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.UnhandledCriticalExtensions) != 1 || !cert.UnhandledCriticalExtensions[0].Equal(san) {
		t.Errorf("unhandled critical extensions %v, want the one of the subject's other names",
			cert.UnhandledCriticalExtensions)
	}
	if cert.NotAfter.Year() != 9999 || cert.Subject.String() != "" {
		t.Errorf("it ends in %d and is for %q", cert.NotAfter.Year(), cert.Subject)
	}
}

// unorderedName returns a name of one SET with elements that are not in DER's order.
func unorderedName(t *testing.T) []byte {
	t.Helper()
	var elements []byte
	for _, i := range []int{3, 2, 1} {
		b, err := asn1.Marshal(pkix.AttributeTypeAndValue{
			Type: asn1.ObjectIdentifier{2, 23, 133, 2, i}, Value: strings.Repeat("v", i),
		})
		if err != nil {
			t.Fatal(err)
		}
		elements = append(elements, b...)
	}
	set := append([]byte{0x31, byte(len(elements))}, elements...)
	return append([]byte{0x30, byte(len(set))}, set...)
}

// Real EK certificates are read, each with its key; a machine that holds one
// begins a session with it.
func TestEKCertificatesOfTheField(t *testing.T) {
	t.Parallel()
	dir := attestortest.FieldCertificates(t)
	want := map[string]attestor.KeyType{
		"infineon-slb9670-rsa2048-mfrca035.der":  attestor.RSA2048,
		"infineon-slb9670-eccp256-mfrca035.der":  attestor.P256,
		"stm-st33htphahb4-rsa2048-padded-ff.bin": attestor.RSA2048,
		"nuvoton-npct6xx-rsa2048-root2110.der":   attestor.RSA2048,
		"intel-ptt-spt-rsa2048-ekop.der":         attestor.RSA2048,
		"swtpm-rsa2048.der":                      attestor.RSA2048,
		"swtpm-eccp384.der":                      attestor.P384,
	}
	ak := membersOf(t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))["AK"]
	for file, kind := range want {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			cert, err := attestor.ParseEKCertificate(b)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := attestor.KeyTypeOf(cert.PublicKey); err != nil || got != kind {
				t.Errorf("a key of the type %s, %v, want %s", got, err, kind)
			}
			text := pemForms(t, attestor.Claim{EK: cert.PublicKey, Certificate: b})
			for form, text := range text {
				var v attestor.Verifier
				s, err := v.Begin(members{"EK": text, "AK": ak}.encode(t))
				if err != nil {
					t.Fatalf("%s: %v", form, err)
				}
				if _, err := s.Challenge(attestor.Ask{}); err != nil {
					t.Errorf("%s: %v", form, err)
				}
			}
		})
	}
}

// Other files, and replies of vendors' services that are not DER, are errors.
func TestOtherFilesOfTheField(t *testing.T) {
	t.Parallel()
	dir := attestortest.FieldCertificates(t)
	for _, file := range []string{"README.md", "aux-intel-ekop-response.json", "ca/amd-AMDTPM-6ed686.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := attestor.ParseEKCertificate(b); err == nil {
			t.Errorf("%s is a certificate", file)
		}
	}
}
