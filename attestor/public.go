package attestor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// rsaExponent is the default public exponent of TPM 2.0 (part 2, 12.2.3.5). No other
// exponent is accepted.
const rsaExponent = 65537

// The sizes of fields in TPM structures, in bytes (part 2, annex B).
const (
	maxDigest   = 64
	maxName     = 2 + maxDigest
	maxRSABytes = 512
	maxECCBytes = 66
)

// publicArea is a TPMT_PUBLIC (part 2, 12.2.4) of an RSA or ECC key.
type publicArea struct {
	typ        tpm2.TPMAlgID
	nameAlg    tpm2.TPMAlgID
	attributes uint32
	policy     []byte

	symmetric  tpm2.TPMAlgID // null, or AES with the next two
	symBits    uint16
	symMode    tpm2.TPMAlgID
	scheme     tpm2.TPMAlgID // null, or a signing scheme with the next one
	schemeHash tpm2.TPMAlgID

	// RSA
	bits     uint16
	exponent uint32
	modulus  []byte

	// ECC
	curve tpm2.TPMECCCurve
	kdf   tpm2.TPMAlgID
	x, y  []byte
}

// readPublic reads a TPMT_PUBLIC. It supports only what endorsement, attestation, DevID and SVID
// keys use.
func readPublic(b []byte) (*publicArea, error) {
	r := &reader{b: b}
	p := &publicArea{
		typ:        r.alg(),
		nameAlg:    r.alg(),
		attributes: r.u32(),
		policy:     r.sized(maxDigest),
	}
	if r.err == nil && p.typ != tpm2.TPMAlgRSA && p.typ != tpm2.TPMAlgECC {
		return nil, fmt.Errorf("a key of the type %#04x: want RSA or ECC", uint16(p.typ))
	}
	p.readSymmetric(r)
	p.readScheme(r)
	if p.typ == tpm2.TPMAlgRSA {
		p.bits, p.exponent = r.u16(), r.u32()
		p.modulus = r.sized(maxRSABytes)
	} else {
		p.curve = tpm2.TPMECCCurve(r.u16())
		if p.kdf = r.alg(); r.err == nil && p.kdf != tpm2.TPMAlgNull {
			return nil, fmt.Errorf("key derivation scheme %#04x: want none", uint16(p.kdf))
		}
		p.x, p.y = r.sized(maxECCBytes), r.sized(maxECCBytes)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	return p, nil
}

// readSymmetric reads a TPMT_SYM_DEF_OBJECT (part 2, 11.1.7).
func (p *publicArea) readSymmetric(r *reader) {
	switch p.symmetric = r.alg(); {
	case r.err != nil, p.symmetric == tpm2.TPMAlgNull:
	case p.symmetric == tpm2.TPMAlgAES:
		p.symBits, p.symMode = r.u16(), r.alg()
	default:
		r.fail(fmt.Errorf("symmetric algorithm %#04x: want AES or none", uint16(p.symmetric)))
	}
}

// readScheme reads a TPMT_RSA_SCHEME or a TPMT_ECC_SCHEME (part 2, 11.2.4.2 and
// 11.2.5.6).
func (p *publicArea) readScheme(r *reader) {
	switch p.scheme = r.alg(); p.scheme {
	case tpm2.TPMAlgNull:
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS, tpm2.TPMAlgECDSA:
		p.schemeHash = r.alg()
	default:
		r.fail(fmt.Errorf("scheme %#04x: want RSASSA, RSAPSS, ECDSA or none", uint16(p.scheme)))
	}
}

// key returns the key in p, which checkKey accepts.
func (p *publicArea) key() (crypto.PublicKey, error) {
	if p.typ == tpm2.TPMAlgRSA {
		return p.rsaKey()
	}
	return p.eccKey()
}

func (p *publicArea) rsaKey() (crypto.PublicKey, error) {
	if p.exponent != 0 && p.exponent != rsaExponent {
		return nil, fmt.Errorf("the public exponent %d: want %d", p.exponent, rsaExponent)
	}
	n := new(big.Int).SetBytes(p.modulus)
	if n.BitLen() != int(p.bits) || len(p.modulus)*8 != int(p.bits) {
		return nil, fmt.Errorf("a modulus of %d bits in a key of %d bits", n.BitLen(), p.bits)
	}
	pub := &rsa.PublicKey{N: n, E: rsaExponent}
	if err := checkKey(pub); err != nil {
		return nil, err
	}
	return pub, nil
}

func (p *publicArea) eccKey() (crypto.PublicKey, error) {
	for _, c := range curves {
		if c.id != p.curve {
			continue
		}
		size := c.fieldSize()
		if len(p.x) == 0 || len(p.y) == 0 || len(p.x) > size || len(p.y) > size {
			return nil, errors.New("a coordinate does not have the size of the curve")
		}
		point := make([]byte, 1+2*size) // uncompressed (SEC 1, 2.3.3)
		point[0] = 4
		// A TPM may leave out leading zeros.
		copy(point[1+size-len(p.x):], p.x)
		copy(point[1+2*size-len(p.y):], p.y)
		pub, err := ecdsa.ParseUncompressedPublicKey(c.curve, point)
		if err != nil {
			return nil, errOffCurve
		}
		return pub, nil
	}
	return nil, fmt.Errorf("the curve %#04x: want P-256, P-384 or P-521", uint16(p.curve))
}

// holds reports whether the key in p is pub.
func (p *publicArea) holds(pub crypto.PublicKey) bool {
	key, err := p.key()
	return err == nil && sameKey(key, pub)
}

var errOffCurve = errors.New("the point is not on the curve")

// checkKey checks that the type and size of a key are accepted, whatever the key is for.
func checkKey(pub crypto.PublicKey) error {
	if _, err := KeyTypeOf(pub); err != nil {
		return err
	}
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if pub.E != rsaExponent {
			return fmt.Errorf("the public exponent %d: want %d", pub.E, rsaExponent)
		}
		if pub.N.Bit(0) == 0 {
			return errors.New("the modulus is even")
		}
	case *ecdsa.PublicKey:
		//nolint:staticcheck // SA1019: a key that a caller has put together may have no point, and Bytes needs one.
		if pub.X == nil || pub.Y == nil {
			return errors.New("the ECC key has no point")
		}
		if _, err := pub.Bytes(); err != nil {
			return errOffCurve
		}
	}
	return nil
}

// sameKey reports whether a and b are the same key.
func sameKey(a, b crypto.PublicKey) bool {
	eq, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(b)
}

// matches reports whether the key with the public area p was made from t.
func (p *publicArea) matches(t *template) bool {
	return p.nameAlg == t.nameAlg &&
		p.attributes == t.attributes() &&
		string(p.policy) == t.policy() &&
		p.symmetric == tpm2.TPMAlgAES && int(p.symBits) == t.aesBits && p.symMode == tpm2.TPMAlgCFB &&
		p.scheme == tpm2.TPMAlgNull
}
