package attestor

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// ErrSVIDKeyFailed is wrapped by an error of Session.Finish if the SVID key in the response is well
// formed but its proof does not hold: the key could leave its TPM, SPIRE cannot use it, or the AK
// has not certified it in this session.
var ErrSVIDKeyFailed = errors.New("the proof of the SVID key does not hold")

// SVIDKey is the key of an agent's SVID, as the agent has proved it: the key was made by the TPM
// that holds the attestation key, and cannot leave it.
type SVIDKey struct {
	// Public is on P-256.
	Public *ecdsa.PublicKey
	// SPKIHash is the SHA-256 of Public's SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7), the DER
	// that SPIRE's server passes to a CredentialComposer. It does not depend on how the TPM encodes
	// the key.
	SPKIHash [sha256.Size]byte
}

// SignedSVIDKey is an SVID key with its proof.
type SignedSVIDKey struct {
	Public    []byte // TPMT_PUBLIC
	Attest    []byte // TPMS_ATTEST of TPM2_Certify over SVIDKeyData
	Signature []byte // TPMT_SIGNATURE of Attest by the AK
}

// SVIDKeyData returns the qualifying data with which the AK certifies an SVID key (TPM 2.0 library
// specification, part 3, 18.2). secret is the activated secret of the challenge: until the server
// gets the response, only the challenged machine knows it. Since the data is a hash of a fixed
// prefix and the secret, a server cannot have the AK sign data of its choice.
func SVIDKeyData(secret []byte) []byte {
	sum := sha256.Sum256(slices.Concat([]byte("spire-tpm-attestor svid key 1\x00"), secret))
	return sum[:]
}

// ReadSVIDKey returns the key in a TPMT_PUBLIC. It returns an error for a key that a Verifier would
// not accept. The key must be on P-256, with the scheme ECDSA with SHA-256 and the nameAlg SHA-256.
// The attributes fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth and sign must be set, and
// restricted and decrypt clear.
func ReadSVIDKey(public []byte) (*ecdsa.PublicKey, error) {
	area, err := readPublic(public)
	if err != nil {
		return nil, err
	}
	return area.svidKey()
}

// svidKey returns the key in p if it passes the checks of ReadSVIDKey.
func (p *publicArea) svidKey() (*ecdsa.PublicKey, error) {
	err := p.checkAttributes("an SVID key",
		attrFixedTPM|attrFixedParent|attrSensitiveDataOrigin|attrUserWithAuth|attrSign, attrRestricted|attrDecrypt)
	switch {
	case err != nil:
		return nil, err
	case p.nameAlg != tpm2.TPMAlgSHA256:
		return nil, fmt.Errorf("name algorithm %#04x: want SHA-256", uint16(p.nameAlg))
	case p.symmetric != tpm2.TPMAlgNull:
		return nil, errors.New("a symmetric algorithm in a key that does not decrypt")
	case p.typ != tpm2.TPMAlgECC || p.curve != tpm2.TPMECCNistP256:
		return nil, errors.New("want a key on P-256")
	case p.scheme != tpm2.TPMAlgECDSA || p.schemeHash != tpm2.TPMAlgSHA256:
		return nil, fmt.Errorf("scheme %#04x with hash %#04x: want ECDSA with SHA-256",
			uint16(p.scheme), uint16(p.schemeHash))
	}
	key, err := p.eccKey()
	if err != nil {
		return nil, err
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("no ECC key")
	}
	return public, nil
}

func svidKeyFailed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSVIDKeyFailed, fmt.Sprintf(format, args...))
}

// proveSVIDKey returns the key in s if k, the AK, has certified it with data as the qualifying
// data.
func (k *signer) proveSVIDKey(s *SignedSVIDKey, data []byte) (*SVIDKey, error) {
	area, err := readPublic(s.Public)
	if err != nil {
		return nil, fmt.Errorf("SVIDKey.Public: %w", err)
	}
	extraData, name, err := readCertify(s.Attest)
	if err != nil {
		return nil, fmt.Errorf("SVIDKey.Attest: %w", err)
	}
	key, err := area.svidKey()
	if err != nil {
		return nil, svidKeyFailed("SVIDKey.Public: %v", err)
	}
	hash, err := hashFor(area.nameAlg)
	if err != nil {
		return nil, err
	}
	switch {
	case !bytes.Equal(name, nameOf(area.nameAlg, hash, s.Public)):
		return nil, svidKeyFailed("SVIDKey.Attest names a key other than SVIDKey.Public")
	case !bytes.Equal(extraData, data):
		return nil, svidKeyFailed("SVIDKey.Attest is not over this session's secret")
	}
	switch err := k.verify(s.Attest, s.Signature); {
	case errors.Is(err, errNotSigned):
		return nil, svidKeyFailed("SVIDKey.Signature: %v", err)
	case err != nil:
		return nil, fmt.Errorf("SVIDKey.Signature: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the SVID key: %w", err)
	}
	return &SVIDKey{Public: key, SPKIHash: sha256.Sum256(der)}, nil
}
