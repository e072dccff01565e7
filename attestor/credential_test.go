package attestor_test

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// TestCredential: for every type of EK, the TPM opens a credential that names its AK, and
// no other credential. Otherwise a listed EK would vouch for keys outside its TPM.
func TestCredential(t *testing.T) {
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
		other := bytes.Clone(name.Buffer)
		other[5] ^= 1
		secret := []byte("a secret of thirty-two bytes ...")
		for _, name := range [][]byte{name.Buffer, other} {
			id, seed, err := attestor.MakeCredential(kind, claim.EK, name, secret)
			if err != nil {
				t.Fatal(err)
			}
			got, err := tpm.ActivateCredential(id[2:], seed[2:])
			if own := !bytes.Equal(name, other); own != (err == nil) || own && !bytes.Equal(got, secret) {
				t.Errorf("%s: the TPM's own AK is named: %v; the answer %x, %v", kind, own, got, err)
			}
		}
	}
}
