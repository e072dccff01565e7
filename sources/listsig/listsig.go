// Package listsig verifies detached signatures over lists of TPMs, so that the
// server that hands out a list need not be trusted with its content.
//
// A signature is by an Ed25519 key over the list itself (RFC 8032, 5.1), or by an
// ECDSA key over the SHA-256 of the list on the curve P-256 (FIPS 186-5). With
// openssl, a key of either kind is made by one of
//
//	openssl genpkey -algorithm ed25519 -out list.key
//	openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out list.key
//
// and its public half, which the verifier is given, by
//
//	openssl pkey -in list.key -pubout -out list.pub
//
// An Ed25519 key signs by the first of these, and an ECDSA key by the second:
//
//	openssl pkeyutl -sign -inkey list.key -rawin -in list.json -out list.json.sig
//	openssl dgst -sha256 -sign list.key -out list.json.sig list.json
//
// A signature may be in base64 as well:
//
//	openssl base64 -in list.json.sig -out list.json.sig.b64
//
// That is how cosign writes one, with the ECDSA key that it makes; without a
// transparency log, which nothing here looks into:
//
//	cosign generate-key-pair
//	cosign sign-blob --yes --key cosign.key --tlog-upload=false --output-signature list.json.sig list.json
//
// which with cosign 3 needs --new-bundle-format=false and
// --use-signing-config=false as well.
//
// A signature says nothing about when it was made: an older list has a good one
// too. What has to stop it from being served again is the serial in the list.
package listsig

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	// MaxSignature is how long a signature may be in bytes, in any of its forms.
	MaxSignature = 256
	// MaxPublicKey is how long the PEM form of a public key may be in bytes.
	MaxPublicKey = 4096
)

// A PublicKey verifies signatures. It is safe for concurrent use.
type PublicKey struct {
	// verify reports whether sig is a signature over list. It gets any bytes.
	verify func(list, sig []byte) bool
	name   string
}

// ParsePublicKey reads a key from one PEM block of the type PUBLIC KEY (RFC 7468,
// 13) with nothing but blanks around it: an Ed25519 key, or an ECDSA key on the
// curve P-256.
func ParsePublicKey(text []byte) (*PublicKey, error) {
	if len(text) > MaxPublicKey {
		return nil, fmt.Errorf("a public key of %d bytes, more than %d", len(text), MaxPublicKey)
	}
	text = bytes.TrimSpace(text)
	block, rest := pem.Decode(text)
	switch {
	case block == nil || !bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return nil, errors.New("no PEM block; write the key with openssl pkey -pubout")
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("a PEM block %.40q; write the public key with openssl pkey -pubout", block.Type)
	case len(block.Headers) > 0:
		return nil, errors.New("a public key with PEM headers")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("something follows the public key; name a file that holds one key and nothing else")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the public key: %w", err)
	}
	switch key := key.(type) {
	case ed25519.PublicKey:
		return &PublicKey{name: "Ed25519", verify: func(list, sig []byte) bool {
			return len(sig) == ed25519.SignatureSize && ed25519.Verify(key, list, sig)
		}}, nil
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, fmt.Errorf("an ECDSA key on the curve %s: P-256 is needed", key.Curve.Params().Name)
		}
		return &PublicKey{name: "ECDSA P-256", verify: func(list, sig []byte) bool {
			sum := sha256.Sum256(list)
			return ecdsa.VerifyASN1(key, sum[:], sig)
		}}, nil
	}
	return nil, fmt.Errorf("a public key of the type %T: Ed25519 or ECDSA P-256 is needed", key)
}

// errSignature does not tell how a signature differs from a good one.
var errSignature = errors.New("no signature over this list by the configured public key")

// Verify returns nil where sig is a signature over the list by this key, and an
// error otherwise, also where k is nil or zero. sig is 64 bytes of Ed25519 or an
// ECDSA-Sig-Value in DER (RFC 3279, 2.2.3), and either may be in base64 (RFC 4648,
// 4), with line ends in it and blanks around it.
func (k *PublicKey) Verify(list, sig []byte) error {
	switch {
	case k == nil || k.verify == nil:
		return errors.New("there is no public key to verify a signature with")
	case len(sig) == 0:
		return errors.New("an empty signature")
	case len(sig) > MaxSignature:
		return fmt.Errorf("a signature of %d bytes, more than %d", len(sig), MaxSignature)
	}
	// One that is not in base64 has a byte that no base64 has: the 64 bytes of
	// Ed25519 are all digits with a chance of 2^-128, and DER holds its lengths.
	if raw, err := decodeBase64(sig); err == nil {
		sig = raw
	}
	if !k.verify(list, sig) {
		return fmt.Errorf("%w (%s)", errSignature, k.name)
	}
	return nil
}

// decodeBase64 decodes a text whose lines may end anywhere, with LF or CRLF.
func decodeBase64(text []byte) ([]byte, error) {
	// What remains of the last digit has to be zero, so that of each signature
	// there is one text.
	return base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSpace(text)))
}
