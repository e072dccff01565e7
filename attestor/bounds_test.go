package attestor_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"runtime"
	"slices"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// hostileCertificates are changes to a certificate of at most 8 KiB that make it many times
// as large when it is parsed, or slow to use.
func hostileCertificates(t *testing.T) map[string]func(*x509.Certificate) {
	t.Helper()
	raw := func(value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 32}, Value: value})
		}
	}
	long := make(asn1.ObjectIdentifier, 7000)
	long[0] = 1
	var names pkix.Name
	for range 600 {
		names.ExtraNames = append(names.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{1, 3}, Value: "x"})
	}
	var nested []byte
	for range 1000 {
		nested, _ = asn1.Marshal(asn1.RawValue{Class: 0, Tag: 16, IsCompound: true, Bytes: nested})
	}
	return map[string]func(*x509.Certificate){
		"2520 usages":    attestortest.Usages(2520),
		"513 usages":     attestortest.Usages(513),
		"an OID of 7 KB": func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{long} },
		"600 alternative names": func(c *x509.Certificate) {
			c.ExtraExtensions, c.DNSNames = nil, slices.Repeat([]string{"x"}, 600)
		},
		"600 attributes":          func(c *x509.Certificate) { c.Subject = names },
		"300 addresses of a CA":   func(c *x509.Certificate) { c.IssuingCertificateURL = make([]string, 300) },
		"300 addresses of a CRL":  func(c *x509.Certificate) { c.CRLDistributionPoints = make([]string, 300) },
		"nested a thousand times": raw(nested),
		"8200 bytes":              attestortest.Padding(8200),
	}
}

// A stranger's certificate must not take much more of a server's memory than its size: 7.8 KB with
// 2520 extended key usages become 121 KiB when they are parsed, and a thousand strangers could fill
// the memory. So the values of a certificate are counted before it is parsed, in every field of a
// payload.
func TestCertificatesThatSwell(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	for name, change := range hostileCertificates(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der := ca.Issue(t, tpm.Claim().EK, attestortest.Certificate{Change: change})
			if name != "8200 bytes" && len(der) > 8<<10 {
				t.Fatalf("it has %d bytes", len(der))
			}
			for _, parse := range []func([]byte) (*x509.Certificate, error){
				attestor.ParseCertificate, attestor.ParseEKCertificate,
			} {
				if c, err := parse(der); err == nil || c != nil {
					t.Error("it is parsed")
				}
			}
			var v attestor.Verifier
			m := membersOf(t, tpm)
			m["EKChain"] = [][]byte{ca.Certificate.Raw, der}
			refused(t, &v, m.encode(t), "payload: EKChain: ")
			m = membersOf(t, tpm)
			m["EK"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
			refused(t, &v, m.encode(t), "payload: EK: ")
		})
	}
}

// The largest accepted payload, with as many certificates as it has room for, takes no
// more of the server's memory than a few times its size. After the challenge, the session
// keeps only the machine's keys.
func TestFatPayload(t *testing.T) {
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{CA: ca, AK: attestor.RSA2048})
	payload := tpm.FatPayload(t, ca)
	if len(payload) < 56<<10 {
		t.Fatalf("a payload of %d bytes is not fat", len(payload))
	}
	var v attestor.Verifier
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := v.Begin(payload)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
		t.Errorf("%d bytes for a payload of %d", n, len(payload))
	}
	if len(s.Chain()) != 4 || s.EK().Certificate == nil {
		t.Errorf("%d further certificates", len(s.Chain()))
	}
	challenge(t, s)
	if s.Chain() != nil || s.EK().Certificate != nil || s.EK().Public == nil {
		t.Error("the session keeps certificates while the machine answers")
	}
}

// A certificate that cannot be parsed does not keep a machine out if a list has its hash,
// as long as the certificate's key can be read and its size is within the limits. The
// serial number of this certificate begins with needless zeros, as in some real ones.
func TestCertificateThatCannotBeParsed(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca, Certificate: attestortest.Certificate{
		Change: func(c *x509.Certificate) { c.SerialNumber = big.NewInt(0x7fff0abc) },
	}})
	der := bytes.Replace(tpm.Claim().Certificate, []byte{0x02, 0x04, 0x7f, 0xff}, []byte{0x02, 0x04, 0, 0}, 1)
	if _, err := x509.ParseCertificate(der); err == nil {
		t.Fatal("it can be parsed")
	}
	m := membersOf(t, tpm)
	for form, text := range pemForms(t, attestor.Claim{EK: tpm.Claim().EK, Certificate: der}) {
		m["EK"] = text
		var v attestor.Verifier
		s, err := v.Begin(m.encode(t))
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		if hex.EncodeToString(s.EK().Hash[:]) != tpm.EKHash() {
			t.Errorf("%s: another EK", form)
		}
	}
	other := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
	m["EK"] = pemForms(t, attestor.Claim{EK: other.Claim().EK, Certificate: der})["certificate and key"]
	var v attestor.Verifier
	refused(t, &v, m.encode(t), "payload: EK: ")
}
