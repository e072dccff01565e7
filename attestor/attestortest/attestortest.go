// Package attestortest is a TPM in software, and an authority that certifies
// its endorsement key, for tests. Its claims are valid payloads, and it activates
// credentials as a TPM does. A test can make it lie.
//
// Everybody knows its keys, so only tests may use it.
package attestortest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"embed"
	"fmt"
	"math/big"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// stock holds RSA keys, which take long to generate, as PKCS #1 in DER.
//
//go:embed keys
var stock embed.FS

// rsaKey returns the key with the given number, from 0, in the stock.
func rsaKey(t attestor.KeyType, number int) (*rsa.PrivateKey, error) {
	der, err := stock.ReadFile(fmt.Sprintf("keys/%s-%d.der", t, number))
	if err != nil {
		return nil, fmt.Errorf("no %s key of the number %d in stock: use an ECC key", t, number)
	}
	return x509.ParsePKCS1PrivateKey(der)
}

// eccKey returns a key derived from the curve, the use and the number: the same in every process.
func eccKey(curve elliptic.Curve, use string, number int) (*ecdsa.PrivateKey, error) {
	var seed []byte
	for i := range 2 {
		sum := sha512.Sum512(fmt.Appendf(nil, "attestortest %s %s %d %d", use, curve.Params().Name, number, i))
		seed = append(seed, sum[:]...)
	}
	n := new(big.Int).Sub(curve.Params().N, big.NewInt(1))
	d := new(big.Int).SetBytes(seed)
	d.Mod(d, n).Add(d, big.NewInt(1))
	return ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, (n.BitLen()+7)/8)))
}

// privateKey is an *rsa.PrivateKey or an *ecdsa.PrivateKey.
type privateKey interface {
	crypto.Signer
	Equal(crypto.PrivateKey) bool
}

func ekKey(t attestor.KeyType, number int) (privateKey, error) {
	if curve := curveOf(t); curve != nil {
		return eccKey(curve, "EK", number)
	}
	return rsaKey(t, number)
}

// akKey returns a new ECC key, or an RSA key from the end of the stock.
func akKey(t attestor.KeyType) (privateKey, error) {
	if curve := curveOf(t); curve != nil {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	last := map[attestor.KeyType]int{attestor.RSA2048: 11, attestor.RSA3072: 1}
	return rsaKey(t, last[t])
}

func curveOf(t attestor.KeyType) elliptic.Curve {
	switch t {
	case attestor.P256:
		return elliptic.P256()
	case attestor.P384:
		return elliptic.P384()
	case attestor.P521:
		return elliptic.P521()
	default:
		return nil
	}
}
