package attestor

import (
	"bytes"
	"crypto"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// A key derived in any other way than TPMs do is a credential that no TPM opens.
func TestKDFaAgrees(t *testing.T) {
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		seed := bytes.Repeat([]byte{0x5A}, hash.Size())
		for _, label := range []string{labelStorage, labelIntegrity} {
			for _, context := range [][]byte{nil, bytes.Repeat([]byte{7}, 34), bytes.Repeat([]byte{8}, maxName)} {
				for _, bits := range []int{128, 256, hash.Size() * 8} {
					got := kdfa(hash, seed, label, context, bits)
					if want := tpm2.KDFa(hash, seed, label, context, nil, bits); !bytes.Equal(got, want) {
						t.Errorf("%v, %s, %d bits: %x, want %x", hash, label, bits, got, want)
					}
				}
			}
		}
	}
}
