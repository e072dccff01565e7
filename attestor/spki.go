package attestor

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
)

// A SubjectPublicKeyInfo of one of the keys that are taken is the key itself
// behind bytes that are the same for all of its type (RFC 5480, 2; RFC 3279,
// 2.3.1): to put them together and to take them apart takes a fraction of the time
// of a DER codec.

// rsaInfo is what stands before the modulus of an RSA key, whose highest bit is
// set. Behind it stands rsaSuffix.
type rsaInfo struct {
	size   int // of the modulus, in bytes
	prefix string
}

// The object identifier rsaEncryption, with its NULL, and the exponent 65537.
const (
	rsaEncryption = "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00"
	rsaSuffix     = "\x02\x03\x01\x00\x01"
)

// rsaInfos is immutable: the sizes of keys that are taken.
var rsaInfos = [...]rsaInfo{
	{256, "\x30\x82\x01\x22" + rsaEncryption + "\x03\x82\x01\x0f\x00\x30\x82\x01\x0a\x02\x82\x01\x01\x00"},
	{384, "\x30\x82\x01\xa2" + rsaEncryption + "\x03\x82\x01\x8f\x00\x30\x82\x01\x8a\x02\x82\x01\x81\x00"},
	{512, "\x30\x82\x02\x22" + rsaEncryption + "\x03\x82\x02\x0f\x00\x30\x82\x02\x0a\x02\x82\x02\x01\x00"},
}

// marshalKey is x509.MarshalPKIXPublicKey.
func marshalKey(pub crypto.PublicKey) ([]byte, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		for _, c := range curves {
			if c.curve == pub.Curve {
				point, err := pub.Bytes()
				return append([]byte(c.prefix), point...), err
			}
		}
	case *rsa.PublicKey:
		for _, i := range rsaInfos {
			if pub.E == rsaExponent && pub.N != nil && pub.N.Sign() > 0 && pub.N.BitLen() == i.size*8 {
				der := make([]byte, len(i.prefix)+i.size+len(rsaSuffix))
				copy(der, i.prefix)
				pub.N.FillBytes(der[len(i.prefix) : len(i.prefix)+i.size])
				copy(der[len(i.prefix)+i.size:], rsaSuffix)
				return der, nil
			}
		}
	}
	return x509.MarshalPKIXPublicKey(pub)
}

// parseKey is x509.ParsePKIXPublicKey.
func parseKey(der []byte) (crypto.PublicKey, error) {
	for _, c := range curves {
		if point, ok := bytes.CutPrefix(der, []byte(c.prefix)); ok {
			return ecdsa.ParseUncompressedPublicKey(c.curve, point)
		}
	}
	for _, i := range rsaInfos {
		rest, ok := bytes.CutPrefix(der, []byte(i.prefix))
		n, end := bytes.CutSuffix(rest, []byte(rsaSuffix))
		if ok && end && len(n) == i.size && n[0]&0x80 != 0 {
			return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: rsaExponent}, nil
		}
	}
	return x509.ParsePKIXPublicKey(der)
}
