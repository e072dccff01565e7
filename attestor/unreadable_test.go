package attestor_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// unreadable makes certificates that package x509 refuses: an extension is in them twice.
var unreadable = attestortest.Certificate{Change: func(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, c.ExtraExtensions...)
}}

// A vendor's certificate that Go cannot parse must neither keep its machine out nor be taken to be
// absent: the server gets it unchanged. A server of the protocol's first version would refuse the
// machine because of it, so such a server gets only the key.
func TestUnreadableCertificate(t *testing.T) {
	t.Parallel()
	// The serial number of this real certificate begins with needless zeros.
	nuvoton, err := os.ReadFile(filepath.Join(attestortest.FieldCases(t), "nuvo-zeros.der"))
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := attestor.ReadEKCertificate(nuvoton)
	if err != nil {
		t.Fatal(err)
	}
	ca := attestortest.NewCA(t, "root")
	made := attestortest.New(t, attestortest.Options{EK: attestor.P384, CA: ca, Certificate: unreadable}).Claim()
	theirs := attestortest.New(t, attestortest.Options{}).Claim()
	theirs.EK, theirs.EKPublic, theirs.Certificate = key, nil, nuvoton
	for name, claim := range map[string]attestor.Claim{"made": made, "Nuvoton": theirs} {
		der := claim.Certificate
		if _, err := attestor.ParseEKCertificate(der); err == nil {
			t.Fatalf("%s: it can be read", name)
		}
		// As in NV memory, and with a chain, which the agent does not send then.
		claim.Certificate = append(append([]byte{0x10, 1, 0, byte(len(der) >> 8), byte(len(der))}, der...), 0xFF, 0xFF)
		claim.Chain = [][]byte{ca.Certificate.Raw}
		payload, err := attestor.NewProver(claim, nil).Payload()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s, err := new(attestor.Verifier).Begin(payload)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(s.EK().Certificate, der) || len(s.Chain()) != 0 {
			t.Errorf("%s: the server sees the certificate %x and %d more", name, s.EK().Certificate, len(s.Chain()))
		}
		var first firstPayload
		if err := json.Unmarshal(payload, &first); err != nil {
			t.Fatal(err)
		}
		if want := pemForms(t, claim)["key"]; !bytes.Equal(first.EK, want) {
			t.Errorf("%s: a server of the first version sees %s", name, first.EK)
		}
	}
}

// A certificate in the chain becomes the EK certificate only if it is for the challenged
// key and the machine has sent no other EK certificate.
func TestCertificateFromTheChain(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca})
	other := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca, Number: 1})
	own, root := tpm.Claim().Certificate, ca.Certificate.Raw
	another := ca.Issue(t, tpm.Claim().EK, unreadable)
	key := pemForms(t, tpm.Claim())["key"]
	for name, tt := range map[string]struct {
		ek                 []byte // of the message, nil for what the agent sends
		chain              [][]byte
		certificate, first []byte
	}{
		"of another key":          {key, [][]byte{other.Claim().Certificate, root}, nil, other.Claim().Certificate},
		"behind a CA's":           {key, [][]byte{root, another}, another, root},
		"two":                     {key, [][]byte{another, own}, another, own},
		"beside a certificate":    {nil, [][]byte{another}, own, another},
		"of a CA, and none other": {key, [][]byte{root}, nil, root},
	} {
		m := membersOf(t, tpm)
		if m["EKChain"] = tt.chain; tt.ek != nil {
			m["EK"] = tt.ek
		}
		s, err := new(attestor.Verifier).Begin(m.encode(t))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(s.EK().Certificate, tt.certificate) {
			t.Errorf("%s: the EK certificate is %x", name, s.EK().Certificate)
		}
		if len(s.Chain()) == 0 || !bytes.Equal(s.Chain()[0], tt.first) {
			t.Errorf("%s: the chain is %x", name, s.Chain())
		}
	}
}
