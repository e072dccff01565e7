package attestor

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
)

// A key read by the short way must be the one that crypto/x509 reads, and a point
// that is not on its curve must be refused by either: who could have one taken
// could choose what the seed is.
func TestParseKeyAgrees(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der := marshalPKIX(t, &key.PublicKey)
		size := (curve.Params().BitSize + 7) / 8
		zeros := append(bytes.Clone(der[:len(der)-2*size]), make([]byte, 2*size)...)
		compressed := append(bytes.Clone(der[:len(der)-2*size-1]), elliptic.MarshalCompressed(curve, key.X, key.Y)...)
		for name, der := range map[string][]byte{
			"key": der, "cut": der[:len(der)-1], "longer": append(bytes.Clone(der), 0),
			"not on the curve": flip(der, len(der)-1), "another form": flip(der, len(der)-2*size-1),
			"zeros": zeros, "no point": der[:len(der)-2*size-1], "compressed": compressed,
			"other parameters": flip(der, 20), "other length": flip(der, 1),
		} {
			wantSameKey(t, curve.Params().Name+": "+name, der)
		}
	}
	for _, bits := range []int{2047, 2048, 3072, 4096, 4097} {
		// A modulus of one's own choice: no key is needed for what it is read as.
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		for _, e := range []int{3, 65537, 1<<31 - 1} {
			pub := &rsa.PublicKey{N: n.Add(n, big.NewInt(2)), E: e}
			der := marshalPKIX(t, pub)
			for i := range der {
				if i < 40 || i > len(der)-8 {
					wantSameKey(t, fmt.Sprintf("RSA %d, byte %d", bits, i), flip(der, i))
				}
			}
			for name, der := range map[string][]byte{
				"key": der, "cut": der[:len(der)-1], "longer": append(bytes.Clone(der), 0), "prefix": der[:33],
				"without the first bytes": append(bytes.Clone(der[:33]), der[34:]...),
			} {
				wantSameKey(t, fmt.Sprintf("RSA %d: %s", bits, name), der)
			}
			if got, err := marshalKey(pub); err != nil || !bytes.Equal(got, der) {
				t.Errorf("RSA %d, exponent %d: encoded as %x, %v", bits, e, got, err)
			}
		}
	}
	for _, pub := range []*rsa.PublicKey{{N: new(big.Int), E: 65537}, {N: big.NewInt(-5), E: 65537}} {
		wantSameError(t, pub)
	}
	wantSameKey(t, "nothing", nil)
}

func wantSameKey(t *testing.T, name string, der []byte) {
	t.Helper()
	got, err := parseKey(der)
	want, wantErr := x509.ParsePKIXPublicKey(der)
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%s: error %v, of crypto/x509 %v", name, err, wantErr)
		return
	}
	if err == nil && !got.(interface{ Equal(x crypto.PublicKey) bool }).Equal(want) {
		t.Errorf("%s: another key", name)
	}
}

// A key that somebody put together, and wrongly, must not be encoded as another one.
func wantSameError(t *testing.T, pub *rsa.PublicKey) {
	t.Helper()
	want, wantErr := x509.MarshalPKIXPublicKey(pub)
	got, err := marshalKey(pub)
	if (err == nil) != (wantErr == nil) || !bytes.Equal(got, want) {
		t.Errorf("%+v: encoded as %x, %v, by crypto/x509 as %x, %v", pub, got, err, want, wantErr)
	}
}

func marshalPKIX(t *testing.T, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// flip returns b with a bit of one byte changed.
func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}
