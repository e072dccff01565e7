package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// The agent sends the certificate chain in the TPM to the server: a site without Internet
// access cannot verify the EK certificate otherwise. A vendor concatenates the chain and
// cuts it into NV indices at any byte. If the chain cannot be read completely, the machine
// still attests.
func TestChainInTheTPM(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	ek := attest(t, newTPM(t, Config{Device: tpm.Device, EK: attestor.P256}))
	defineNV(t, tpm.Device, nvContent{0x01C0000A, ekCertificate(t, ek.Public), readable, ""})
	want := [][]byte{ekCertificate(t, ek.Public), ekCertificate(t, ek.Public)}
	all := slices.Concat(want[0], want[1], make([]byte, 50))
	defineNV(t, tpm.Device, nvContent{0x01C00100, all[:1000], readable, ""})
	defineNV(t, tpm.Device, nvContent{0x01C00101, all[1000:2900], readable, ""})
	defineNV(t, tpm.Device, nvContent{0x01C00102, all[2900:], readable, ""})

	a, err := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256}).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := finish(a); err != nil {
		t.Error(err)
	}
	if !slices.EqualFunc(a.Claim.Chain, want, bytes.Equal) || a.ChainErr != nil {
		t.Errorf("%d certificates, want %d: %v", len(a.Claim.Chain), len(want), a.ChainErr)
	}

	// The last index cannot be read.
	undefineNV(t, tpm.Device, 0x01C00102)
	defineNV(t, tpm.Device, nvContent{0x01C00102, nil, readable, ""})
	a, err = newTPM(t, Config{Device: tpm.Device, EK: attestor.P256}).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := finish(a); err != nil {
		t.Error(err)
	}
	if len(a.Claim.Chain) != 1 || a.ChainErr == nil || !strings.Contains(a.ChainErr.Error(), "0x01c00102") {
		t.Errorf("%d certificates: %v", len(a.Claim.Chain), a.ChainErr)
	}
}

// A chain that could not be read, as in a TPM that was locked out, is read again for the
// next attestation. The agent need not be restarted. A chain that was read is not read
// again.
func TestChainIsReadAgain(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	der := attestortest.NewCA(t, "CA").Certificate.Raw
	defineNV(t, tpm.Device, nvContent{0x01C00100, der, readable, ""})
	device := newTPM(t, Config{Device: tpm.Device})
	failing := true
	tap := &tap{instead: func(_ int, cc tpm2.TPMCC, command []byte) ([]byte, error) {
		if failing && cc == tpm2.TPMCCNVReadPublic && bytes.Equal(command[10:14], []byte{1, 0xC0, 1, 0}) {
			return response(tpm2.TPMRCLockout), nil
		}
		return nil, nil
	}}
	tap.listen(device)
	for i, want := range []struct{ chain, reads int }{{0, 3}, {1, 1}, {1, 0}} {
		tap.commands = nil
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Claim.Chain) != want.chain || (a.ChainErr == nil) != (want.chain == 1) {
			t.Errorf("attestation %d: %d certificates of the chain, want %d: %v", i, len(a.Claim.Chain), want.chain, a.ChainErr)
		}
		if got := count(tap.commands, tpm2.TPMCCNVReadPublic); got != want.reads {
			t.Errorf("attestation %d looked at %d NV indices, want %d", i, got, want.reads)
		}
		failing = false
	}
}

// Padding and anything else that is not a certificate is left out of the chain: a server
// refuses a payload with a certificate that it cannot parse.
func TestSplitCertificates(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := ekCertificate(t, key.Public())
	for name, tt := range map[string]struct {
		content []byte
		want    int
		err     string
	}{
		"nothing":        {nil, 0, ""},
		"padding":        {make([]byte, 100), 0, ""},
		"two":            {slices.Concat(cert, cert), 2, ""},
		"one and 0xFF":   {slices.Concat(cert, bytes.Repeat([]byte{0xFF}, 9)), 1, ""},
		"one and a part": {slices.Concat(cert, cert[:100]), 1, "certificate 2"},
		"one and 0x11":   {slices.Concat(cert, bytes.Repeat([]byte{0x11}, 192)), 1, ""},
		"a string":       {[]byte{4, 1, 0}, 0, "certificate 1"},
		"seventeen":      {bytes.Repeat(cert, 17), 16, "more than 16"},
	} {
		t.Run(name, func(t *testing.T) {
			chain, err := splitCertificates(tt.content)
			if len(chain) != tt.want || (err == nil) != (tt.err == "") ||
				(err != nil && !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%d certificates, %v", len(chain), err)
			}
		})
	}
}
