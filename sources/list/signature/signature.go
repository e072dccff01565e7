// Package signature makes and verifies detached signatures of lists, so that the server that
// distributes a list need not be trusted with its content.
//
// An Ed25519 key signs the list itself (RFC 8032, 5.1), and an ECDSA key on the curve P-256
// signs the SHA-256 of the list (FIPS 186-5). With openssl, either of these commands makes a
// key:
//
//	openssl genpkey -algorithm ed25519 -out list.key
//	openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out list.key
//
// and this command writes its public half, for the verifier:
//
//	openssl pkey -in list.key -pubout -out list.pub
//
// The file for the verifier may hold several public keys, one after another. A list counts if any
// of them has signed it, so a key can be replaced without a moment in which no list counts.
//
// The first of these commands signs with an Ed25519 key, the second with an ECDSA key:
//
//	openssl pkeyutl -sign -inkey list.key -rawin -in list.json -out list.json.sig
//	openssl dgst -sha256 -sign list.key -out list.json.sig list.json
//
// A signature may also be in base64:
//
//	openssl base64 -in list.json.sig -out list.json.sig.b64
//
// cosign writes signatures in base64, by the ECDSA key that it makes. No transparency log is
// consulted:
//
//	cosign generate-key-pair
//	cosign sign-blob --yes --key cosign.key --tlog-upload=false --output-signature list.json.sig list.json
//
// cosign 3 also needs --new-bundle-format=false and --use-signing-config=false.
//
// A signature says nothing about when it was made: an older list has a good signature too. It is
// the serial in the list that keeps an older list from being served again.
package signature

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

const (
	// MaxSignature is the maximum length of a signature in bytes, in any of its forms.
	MaxSignature = 256
	// MaxPublicKeys is the maximum length of the PEM form of public keys in bytes.
	MaxPublicKeys = 4096
	// MaxPrivateKey is the maximum length of the PEM form of a private key in bytes.
	MaxPrivateKey = 4096
)

// A PublicKey verifies signatures. It is safe for concurrent use.
type PublicKey struct {
	// verify reports whether sig is a signature over list. sig may be any bytes.
	verify func(list, sig []byte) bool
	name   string
	id     ID
}

// An ID identifies a key: the SHA-256 of its SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7). No
// key has the zero ID.
type ID [sha256.Size]byte

// ID returns the ID of the key.
func (k *PublicKey) ID() ID { return k.id }

// PublicKeys are keys, any of which may have signed a list. An empty PublicKeys verifies nothing.
type PublicKeys []*PublicKey

// ParsePublicKeys reads one or more keys: Ed25519 keys, and ECDSA keys on the curve P-256. Each is
// in a PEM block of the type PUBLIC KEY (RFC 7468, 13), with nothing but white space around it.
// Anything else is an error.
func ParsePublicKeys(text []byte) (PublicKeys, error) {
	if len(text) > MaxPublicKeys {
		return nil, fmt.Errorf("the public keys are %d bytes long, more than %d", len(text), MaxPublicKeys)
	}
	var keys PublicKeys
	for text = bytes.TrimSpace(text); len(keys) == 0 || len(text) > 0; text = bytes.TrimSpace(text) {
		if !bytes.HasPrefix(text, []byte("-----BEGIN ")) { // pem.Decode would skip to the next block
			return nil, errors.New("something that is not a PEM block; write each key with openssl pkey -pubout")
		}
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("an incomplete PEM block; write each key with openssl pkey -pubout")
		}
		key, err := parseBlock(block)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func parseBlock(block *pem.Block) (*PublicKey, error) {
	switch {
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("a PEM block of type %.40q; write the public key with openssl pkey -pubout", block.Type)
	case len(block.Headers) > 0:
		return nil, errors.New("a public key with PEM headers")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the public key: %w", err)
	}
	key := &PublicKey{}
	switch parsed := parsed.(type) {
	case ed25519.PublicKey:
		key.name = "Ed25519"
		key.verify = func(list, sig []byte) bool {
			return len(sig) == ed25519.SignatureSize && ed25519.Verify(parsed, list, sig)
		}
	case *ecdsa.PublicKey:
		if parsed.Curve != elliptic.P256() {
			return nil, fmt.Errorf("an ECDSA key on the curve %s: P-256 is needed", parsed.Curve.Params().Name)
		}
		key.name = "ECDSA P-256"
		key.verify = func(list, sig []byte) bool {
			sum := sha256.Sum256(list)
			return ecdsa.VerifyASN1(parsed, sum[:], sig)
		}
	default:
		return nil, fmt.Errorf("a public key of the type %T: Ed25519 or ECDSA P-256 is needed", parsed)
	}
	der, err := x509.MarshalPKIXPublicKey(parsed)
	if err != nil {
		return nil, fmt.Errorf("write the public key: %w", err)
	}
	key.id = sha256.Sum256(der)
	return key, nil
}

// Verify returns the ID of the key that has signed the list, by the rules of PublicKey.Verify, or
// an error if none of the keys has.
func (ks PublicKeys) Verify(list, sig []byte) (ID, error) {
	err := errNoKey
	for _, k := range ks {
		if err = k.Verify(list, sig); err == nil {
			return k.id, nil
		}
	}
	if len(ks) > 1 && errors.Is(err, errSignature) {
		err = fmt.Errorf("%w, nor by another one of the %d", err, len(ks))
	}
	return ID{}, err
}

// Has reports whether one of the keys has the given ID.
func (ks PublicKeys) Has(id ID) bool {
	return slices.ContainsFunc(ks, func(k *PublicKey) bool { return k.id == id })
}

var errNoKey = errors.New("there is no public key to verify a signature with")

// errSignature deliberately does not say how a signature differs from a good one.
var errSignature = errors.New("no signature over this list by the configured public key")

// Verify returns nil if sig is a signature of the list by this key, and an error otherwise,
// including if k is nil or zero. sig is the 64 bytes of Ed25519, or an ECDSA-Sig-Value in DER (RFC
// 3279, 2.2.3). Either may be in base64 (RFC 4648, 4), with line breaks in it and white space
// around it.
func (k *PublicKey) Verify(list, sig []byte) error {
	switch {
	case k == nil || k.verify == nil:
		return errNoKey
	case len(sig) == 0:
		return errors.New("an empty signature")
	case len(sig) > MaxSignature:
		return fmt.Errorf("a signature of %d bytes, more than %d", len(sig), MaxSignature)
	}
	// A binary signature is not mistaken for base64: the 64 bytes of Ed25519 are all base64
	// characters with a probability of 2^-128, and DER does not begin with base64 characters.
	if raw, err := decodeBase64(sig); err == nil {
		sig = raw
	}
	if !k.verify(list, sig) {
		return fmt.Errorf("%w (%s)", errSignature, k.name)
	}
	return nil
}

// decodeBase64 decodes a text with any line breaks, LF or CRLF.
func decodeBase64(text []byte) ([]byte, error) {
	// The unused bits of the last character must be zero, so that each signature has only one
	// encoding.
	return base64.StdEncoding.Strict().DecodeString(string(bytes.TrimSpace(text)))
}

// Sign returns a signature of a list in the form that PublicKey.Verify accepts. The public key must
// be of a type that ParsePublicKeys accepts. The key may be an ed25519.PrivateKey, an
// *ecdsa.PrivateKey on the curve P-256, or any crypto.Signer that keeps such a key to itself, such
// as an HSM's.
func Sign(key crypto.Signer, list []byte) ([]byte, error) {
	message, opts := list, crypto.SignerOpts(crypto.Hash(0))
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return nil, fmt.Errorf("an ECDSA key on the curve %s: P-256 is needed", public.Curve.Params().Name)
		}
		sum := sha256.Sum256(list)
		message, opts = sum[:], crypto.SHA256
	default:
		return nil, fmt.Errorf("a private key of the type %T: Ed25519 or ECDSA P-256 is needed", key)
	}
	sig, err := key.Sign(rand.Reader, message, opts)
	if err != nil {
		return nil, fmt.Errorf("sign the list: %w", err)
	}
	return sig, nil
}

// ParsePrivateKey reads a private key for Sign from a PEM block of the type PRIVATE KEY (RFC 7468,
// 10), as openssl genpkey writes it, with nothing but white space around it.
func ParsePrivateKey(text []byte) (crypto.Signer, error) {
	if len(text) > MaxPrivateKey {
		return nil, fmt.Errorf("the private key is %d bytes long, more than %d", len(text), MaxPrivateKey)
	}
	text = bytes.TrimSpace(text)
	block, rest := pem.Decode(text)
	if !bytes.HasPrefix(text, []byte("-----BEGIN PRIVATE KEY-----")) || block == nil || len(rest) > 0 {
		return nil, errors.New("not one PEM block of the type PRIVATE KEY: write the key with openssl genpkey")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse the private key: %w", err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a private key of the type %T: Ed25519 or ECDSA P-256 is needed", parsed)
	}
	if _, err := Sign(key, nil); err != nil { // checks the key's type
		return nil, err
	}
	return key, nil
}
