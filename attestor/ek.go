package attestor

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// EK is a public endorsement key with the certificate that came with it.
type EK struct {
	// Public is an *rsa.PublicKey of 2048, 3072 or 4096 bits with the
	// exponent 65537, or an *ecdsa.PublicKey on P-256, P-384 or P-521.
	Public crypto.PublicKey
	// Hash is the EK hash: see HashEK.
	Hash [sha256.Size]byte
	// Certificate is the EK certificate in DER, or nil: at most 8 KiB and 512
	// values. The public key in it equals Public. Nothing else about it is
	// verified, and ParseEKCertificate may refuse it.
	Certificate []byte
}

// HashEK returns the EK hash of a public key: the SHA-256 of its DER SubjectPublicKeyInfo (PKIX, as
// Go marshals it). It returns an error for a key that EK.Public would not hold.
func HashEK(pub crypto.PublicKey) ([sha256.Size]byte, error) {
	if err := checkKey(pub); err != nil {
		return [sha256.Size]byte{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encode the key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// The types of PEM blocks (RFC 7468, 5 and 13).
const (
	pemCertificate = "CERTIFICATE"
	pemPublicKey   = "PUBLIC KEY"
)

// parseEK reads the field EK of a payload: a certificate and a public key in PEM, in either order,
// or only one of them. A certificate vouches only for the key in it, so a key that is sent with it
// must be the same key.
func parseEK(text []byte) (*EK, error) {
	certificate, key, err := splitPEM(text)
	if err != nil {
		return nil, err
	}
	ek := new(EK)
	if certificate != nil {
		var behind []byte
		if certificate, behind, err = unwrap(certificate); err != nil {
			return nil, err
		}
		if !isPadding(behind) {
			return nil, errors.New("something other than padding follows the certificate")
		}
		if ek.Public, err = certificateKey(certificate); err != nil {
			return nil, err
		}
		ek.Certificate = bytes.Clone(certificate) // without the padding
	}
	if key != nil {
		pub, err := x509.ParsePKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("parse the public key: %w", err)
		}
		if certificate != nil && !sameKey(pub, ek.Public) {
			return nil, errors.New("the certificate is not for the key sent with it")
		}
		ek.Public = pub
	}
	if ek.Hash, err = HashEK(ek.Public); err != nil {
		return nil, err
	}
	return ek, nil
}

// takeCertificate moves the EK certificate from the chain to ek if ek has none: an agent sends an
// EK certificate that package x509 cannot parse in the chain. The first certificate for ek's key is
// the EK certificate.
func (ek *EK) takeCertificate(p *payload) {
	if ek.Certificate != nil {
		return
	}
	for i, der := range p.EKChain {
		if key, err := certificateKey(der); err == nil && sameKey(key, ek.Public) {
			ek.Certificate, p.EKChain = der, slices.Delete(p.EKChain, i, i+1)
			return
		}
	}
}

// splitPEM returns the content of the PEM blocks in text: a certificate, a public key, or both.
// What is missing is nil. Only white space may surround the blocks.
func splitPEM(text []byte) (certificate, key []byte, err error) {
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		block, next, err := cutPEM(rest)
		if err != nil {
			return nil, nil, err
		}
		into := &key
		switch block.Type {
		case pemCertificate:
			into = &certificate
		case pemPublicKey:
		default:
			return nil, nil, errors.New("a PEM block of a type other than CERTIFICATE and PUBLIC KEY")
		}
		if *into != nil {
			return nil, nil, fmt.Errorf("two PEM blocks of the type %s", block.Type)
		}
		if *into = block.Bytes; len(block.Bytes) == 0 {
			return nil, nil, errors.New("an empty PEM block")
		}
		rest = bytes.TrimSpace(next)
	}
	if certificate == nil && key == nil {
		return nil, nil, errors.New("no PEM block")
	}
	return certificate, key, nil
}

// cutPEM returns the PEM block at the beginning of text, and what follows it.
func cutPEM(text []byte) (*pem.Block, []byte, error) {
	begin := []byte("-----BEGIN ")
	switch {
	case !bytes.HasPrefix(text, begin):
		return nil, nil, errors.New("something other than PEM blocks")
	case bytes.IndexByte(text, ':') >= 0: // only headers have colons; they are slow to parse
		return nil, nil, errors.New("a PEM block with headers")
	case bytes.Count(text, begin) > 2: // looking for the end of each block is slow, too
		return nil, nil, errors.New("more than two PEM blocks")
	}
	block, next := pem.Decode(text)
	// If Decode cannot read a block, it goes on to the next.
	if block == nil || bytes.Count(text[:len(text)-len(next)], begin) != 1 {
		return nil, nil, errors.New("a PEM block that cannot be read")
	}
	return block, next, nil
}

// findTemplate returns the template from which an EK was made. public is the key's TPMT_PUBLIC; if
// it is empty, the key's type decides.
func findTemplate(pub crypto.PublicKey, public []byte) (*template, error) {
	keyType, err := KeyTypeOf(pub)
	if err != nil {
		return nil, err
	}
	var area *publicArea
	if len(public) > 0 {
		if area, err = readPublic(public); err != nil {
			return nil, err
		}
		if !area.holds(pub) {
			return nil, errors.New("it is not the key in EK")
		}
	}
	for i := range templates {
		t := &templates[i]
		if t.keyType == keyType && (area == nil || area.matches(t)) {
			return t, nil
		}
	}
	return nil, fmt.Errorf("a key of type %s that fits no template of the EK credential profile", keyType)
}

// checkROCA refuses an RSA key that has the fingerprint of CVE-2017-15361.
func checkROCA(pub crypto.PublicKey) error {
	if key, ok := pub.(*rsa.PublicKey); ok && hasROCA(key.N) {
		return errors.New("the RSA key is weak (ROCA, CVE-2017-15361): its private key can be computed " +
			"from it; update the TPM's firmware and make a new EK, or set allow_weak_ek at the server")
	}
	return nil
}
