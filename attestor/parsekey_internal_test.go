package attestor

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
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
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	wantSameKey(t, "RSA", marshalPKIX(t, &key.PublicKey))
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
