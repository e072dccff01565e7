package attestor

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"
)

// A signature that is written out is the one that encoding/asn1 writes: otherwise
// one in some hundreds would be refused, for the zeros that its numbers begin with.
func TestECDSASignature(t *testing.T) {
	var numbers [][]byte
	for _, size := range []int{0, 1, 31, 32, 48, 60, 61, 62, 66} {
		for _, first := range []byte{0, 1, 0x7F, 0x80, 0xFF} {
			n := bytes.Repeat([]byte{first}, size)
			numbers = append(numbers, n, append([]byte{0, 0}, n[:max(size-2, 0)]...))
		}
	}
	for _, r := range numbers {
		for _, s := range numbers {
			want, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
			if err != nil {
				t.Fatal(err)
			}
			if got := ecdsaSignature(r, s); !bytes.Equal(got, want) {
				t.Fatalf("%x, %x: %x, want %x", r, s, got, want)
			}
		}
	}
}
