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
func DecodeResponse(msg []byte, asked Ask) (secret, nonce, eventLog []byte, quote *SignedQuote, err error) {
	p, err := decodeResponse(msg, &asked)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	return p.secret, p.nonce, p.eventLog, p.quote, nil
}

// ReadQuote is readQuote.
func ReadQuote(b []byte, want tpm2.TPMSPCRSelection) (extraData, pcrDigest []byte, err error) {
	return readQuote(b, want)
}

// QualifyingData is qualifyingData.
func QualifyingData(server, agent []byte) []byte { return qualifyingData(server, agent) }

// Challenged returns a session that waits for a response and has sent this secret and nonce.
func Challenged(v *Verifier, payload []byte, ask Ask, secret, nonce [32]byte) (*Session, error) {
	s, err := v.Begin(payload)
	if err != nil {
		return nil, err
	}
	if _, err := s.Challenge(ask); err != nil {
		return nil, err
	}
	s.secret, s.nonce = secret, nonce
	return s, nil
}

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

// Copy returns a session in the same state.
func (s *Session) Copy() *Session {
	c := *s
	return &c
}

// CertifyData is certifyData.
func CertifyData(server, agent []byte) []byte { return certifyData(server, agent) }

// DevIDMessage is devIDMessage.
func DevIDMessage(server, agent, ak []byte) []byte { return devIDMessage(server, agent, ak) }

// ReadCertify is readCertify.
func ReadCertify(b []byte) (extraData, name []byte, err error) { return readCertify(b) }
