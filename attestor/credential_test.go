package attestor_test

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// A credential is what go-tpm makes, to a TPM: of the same structure and sizes,
// and with the same answer.
func TestCredentialAsOfGoTPM(t *testing.T) {
	t.Parallel()
	for _, kind := range []attestor.KeyType{
		attestor.RSA2048, attestor.RSA3072, attestor.RSA4096, attestor.P256, attestor.P384, attestor.P521,
	} {
		tpm := attestortest.New(t, attestortest.Options{EK: kind})
		claim := tpm.Claim()
		ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](claim.AK.Public)
		if err != nil {
			t.Fatal(err)
		}
		name, err := tpm2.ObjectName(ak)
		if err != nil {
			t.Fatal(err)
		}
		ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](claim.EKPublic)
		if err != nil {
			t.Fatal(err)
		}
		key, err := tpm2.ImportEncapsulationKey(ek)
		if err != nil {
			t.Fatal(err)
		}
		secret := []byte("a secret of thirty-two bytes ...")
		wantID, wantSeed, err := tpm2.CreateCredential(rand.Reader, key, name.Buffer, secret)
		if err != nil {
			t.Fatal(err)
		}
		id, seed, err := attestor.MakeCredential(kind, claim.EK, name.Buffer, secret)
		if err != nil {
			t.Fatal(err)
		}
		if len(id) != 2+len(wantID) || len(seed) != 2+len(wantSeed) {
			t.Errorf("%s: %d and %d bytes, want %d and %d", kind, len(id), len(seed), 2+len(wantID), 2+len(wantSeed))
		}
		for who, c := range map[string][2][]byte{"go-tpm": {wantID, wantSeed}, "this package": {id[2:], seed[2:]}} {
			if got, err := tpm.ActivateCredential(c[0], c[1]); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%s, by %s: %x, %v", kind, who, got, err)
			}
		}
		// The name is bound: to another key's, the TPM answers nothing.
		other := bytes.Clone(name.Buffer)
		other[5] ^= 1
		if id, seed, err = attestor.MakeCredential(kind, claim.EK, other, secret); err != nil {
			t.Fatal(err)
		}
		if got, err := tpm.ActivateCredential(id[2:], seed[2:]); err == nil {
			t.Errorf("%s: an AK that is not in the TPM: %x", kind, got)
		}
	}
}
