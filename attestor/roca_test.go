package attestor

import (
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"
)

// An honest key does not have the fingerprint. One in 2^27 has it by chance, so a thousand
// odd numbers should not.
func TestHonestModuliAreNotROCA(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if hasROCA(key.N) {
		t.Error("an honest key has the fingerprint")
	}
	limit := new(big.Int).Lsh(big.NewInt(1), 2048)
	for range 1000 {
		n, err := rand.Int(rand.Reader, limit)
		if err != nil {
			t.Fatal(err)
		}
		if n.SetBit(n, 0, 1); hasROCA(n) {
			t.Errorf("%x has the fingerprint", n)
		}
	}
}

// The fingerprint is as rare as its authors say: the product, over the primes,
// of the share of residues that are powers of 65537, is about 2^-27.
func TestROCAFingerprintIsRare(t *testing.T) {
	t.Parallel()
	chance := 1.0
	for _, p := range rocaPrimes {
		if !big.NewInt(int64(p)).ProbablyPrime(0) {
			t.Errorf("%d is no prime", p)
		}
		powers := 0
		for r := range p {
			if isPowerOf65537(r, p) {
				powers++
			}
		}
		chance *= float64(powers) / float64(p-1)
	}
	if chance > 1.0/(1<<27) || chance < 1.0/(1<<29) {
		t.Errorf("the chance is %g, want about 2^-27", chance)
	}
}
