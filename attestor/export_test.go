package attestor

import (
	"crypto"

	"github.com/google/go-tpm/tpm2"
)

// What the tests of package attestor_test see of the parsers.

// ParseEK is parseEK.
func ParseEK(text []byte) (*EK, error) { return parseEK(text) }

// CertificateKey is certificateKey.
func CertificateKey(b []byte) (crypto.PublicKey, error) { return certificateKey(b) }

// DecodeResponse is decodeResponse.
func DecodeResponse(msg []byte) ([]byte, error) { return decodeResponse(msg, MaxResponseSize) }

// CheckCreationData is checkCreationData.
func CheckCreationData(b []byte) error { return checkCreationData(b) }

// ReadPublic returns the key in a TPMT_PUBLIC. It returns nil if the structure can be read
// and its key is not accepted.
func ReadPublic(b []byte) (crypto.PublicKey, error) {
	p, err := readPublic(b)
	if err != nil {
		return nil, err
	}
	pub, err := p.key()
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // the structure is what is asked for
	}
	return pub, nil
}

// ReadCreation returns what a TPMS_ATTEST says of a creation.
func ReadCreation(b []byte) (name, hash []byte, err error) {
	c, err := readCreation(b)
	if err != nil {
		return nil, nil, err
	}
	return c.name, c.hash, nil
}

// MakeCredential is makeCredential for a key made from the template that
// TemplateFor returns.
func MakeCredential(t KeyType, pub crypto.PublicKey, name, secret []byte) (credential, seed []byte, err error) {
	for i := range templates {
		if templates[i].keyType == t {
			ec, err := makeCredential(&templates[i], pub, name, secret)
			if err != nil {
				return nil, nil, err
			}
			return ec.Credential, ec.Secret, nil
		}
	}
	return nil, nil, tpm2.ErrUnsupportedType
}
