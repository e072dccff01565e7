package certs

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// AMD's intermediates name their issuer in other string types than the root
// names itself; both of the root's certificates must be found above both.
func TestRealAMDIntermediates(t *testing.T) {
	dir := attestortest.FieldCertificates(t)
	const printable = "aux-amd-aia-response-AMDTPM-RSA-root.der"
	for _, name := range []string{"ca/amd-PRG-RN-rsa-issuerPrintable*", "ca/amd-PRG-RPL*"} {
		sub := readCA(t, dir, name)
		for _, root := range []string{"ca/amd-AMDTPM*", printable} {
			if err := sub.CheckSignatureFrom(readCA(t, dir, root)); err != nil {
				t.Fatalf("the test's premise does not hold: %v", err)
			}
			if !chains(t, sub, readCA(t, dir, root)) {
				t.Errorf("%s does not chain to %s", name, root)
			}
		}
		for _, other := range []string{"ca/swtpm-localca-rootca*", "ca/Infineon-OPTIGA-TM-RSA-Root-CA*"} {
			if chains(t, sub, readCA(t, dir, other)) {
				t.Errorf("%s chains to %s", name, other)
			}
		}
	}
}

// chains reports whether cert chains to root if that is the only CA configured.
func chains(t *testing.T, cert, root *x509.Certificate) bool {
	t.Helper()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	files := []File{{Path: "root", Entries: []Entry{{Certificate: root, Number: 1}}}}
	all, warnings, err := NewAnchors(t.Context(), files, EK(), now)
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	found, err := newSearch(Request{Leaf: cert, Anchors: all, Profile: EK(), Now: now}, now).find()
	if err != nil {
		t.Fatal(err)
	}
	return found.Chain != nil
}

// readCA reads the certificate in the file that a pattern matches.
func readCA(t *testing.T, dir, pattern string) *x509.Certificate {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %q, %v", pattern, files, err)
	}
	der, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(der); block != nil {
		der = block.Bytes
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
