package server

import (
	"crypto/rsa"
	"math/big"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// TestWeakEKDuringTheChallenge: if allow_weak_ek is switched off while a challenge is open, an
// EK whose private half can be computed is refused. Whoever has computed it is the one to hold
// a challenge open.
func TestWeakEKDuringTheChallenge(t *testing.T) {
	primes := big.NewInt(1) // a modulus that is 1 = 65537^0 modulo every small prime is one of ROCA
	for p := int64(2); p < 200; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			primes.Mul(primes, big.NewInt(p))
		}
	}
	n := new(big.Int).Lsh(primes, uint(2048-primes.BitLen()))
	weak := &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
	strict, lax := attestor.Verifier{}, attestor.Verifier{AllowWeakEK: true}
	p := New()
	defer p.Close()
	began := &generation{verifier: lax}
	for name, now := range map[string]*generation{"the same": began, "still allowed": {verifier: lax}} {
		p.current.Store(now)
		a := &attestation{plugin: p, generation: began}
		if failed := a.renew(weak); failed != nil || a.generation != now {
			t.Errorf("%s: %+v", name, failed)
		}
	}
	p.current.Store(&generation{verifier: strict})
	a := &attestation{plugin: p, generation: began}
	if failed := a.renew(weak); failed == nil || failed.code != codes.InvalidArgument {
		t.Errorf("allowed no more: %+v", failed)
	}
	p.current.Store(nil)
}
