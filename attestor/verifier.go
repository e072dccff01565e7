package attestor

import (
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
)

// Verifier is the server's half of the handshake. The zero value is ready to use. It is
// safe for concurrent use.
type Verifier struct {
	// AllowWeakEK admits RSA endorsement keys with the ROCA weakness
	// (CVE-2017-15361).
	AllowWeakEK bool
}

// Begin checks a payload and begins a session. Every error is about the
// payload.
//
// It checks that the endorsement key has an accepted size and template, that its
// certificate is for exactly that key, and that the attestation key is one according to
// its own signed creation data. Whether that is true is established by Finish.
func (v *Verifier) Begin(payload []byte) (*Session, error) {
	p, err := decodePayload(payload)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	ek, err := parseEK(p.EK)
	if err != nil {
		return nil, fmt.Errorf("payload: EK: %w", err)
	}
	if err := v.CheckEK(ek.Public); err != nil {
		return nil, fmt.Errorf("payload: EK: %w", err)
	}
	tmpl, err := findTemplate(ek.Public, p.EKPublic)
	if err != nil {
		return nil, fmt.Errorf("payload: EKPublic: %w", err)
	}
	if err := checkChain(p.EKChain); err != nil {
		return nil, fmt.Errorf("payload: EKChain: %w", err)
	}
	ek.takeCertificate(p)
	ak, err := parseAK(&p.AK)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return &Session{ek: ek, template: tmpl, chain: p.EKChain, ak: ak}, nil
}

// CheckEK reports whether v accepts an endorsement key that another Verifier has
// accepted, by what a Verifier's settings decide.
func (v *Verifier) CheckEK(ek crypto.PublicKey) error {
	if v.AllowWeakEK {
		return nil
	}
	return checkROCA(ek)
}

// checkChain checks the limits of the certificates in a chain. It does not parse them.
func checkChain(chain [][]byte) error {
	for i, der := range chain {
		if _, err := keyIn(der); err != nil {
			return fmt.Errorf("certificate %d: %w", i, err)
		}
	}
	return nil
}

// A Session is one attestation at the server: call Challenge once, then Finish once.
// It must be used by only one goroutine.
type Session struct {
	ek       *EK
	template *template
	chain    [][]byte
	ak       *attestationKey

	state  sessionState
	secret [32]byte
}

type sessionState int

const (
	begun sessionState = iota
	challenged
	finished
)

// EK returns the endorsement key that the session challenges. After Challenge, the
// session has let go of the certificate.
func (s *Session) EK() *EK { return s.ek }

// Chain returns the additional certificates that the agent sent, in DER: at most 16,
// each of at most 8 KiB, 512 values, and a key of at most 8192 bits. Nothing else
// about them is verified, and ParseCertificate may refuse them. After Challenge, the
// session has let go of them.
func (s *Session) Chain() [][]byte { return s.chain }

// AK returns the attestation key, an *rsa.PublicKey or an *ecdsa.PublicKey. Its
// parameters have been checked; that it is in the EK's TPM is proved only once Finish
// has succeeded.
func (s *Session) AK() crypto.PublicKey {
	if s.ak == nil {
		return nil
	}
	return s.ak.public
}

// Challenge returns the challenge message. It must be called once. An error is not the
// payload's fault: whatever Begin accepts can be challenged.
func (s *Session) Challenge() ([]byte, error) {
	if s.ak == nil {
		return nil, errors.New("the session has not begun")
	}
	if s.state != begun {
		return nil, errors.New("the session has been challenged already")
	}
	s.state = challenged
	// An agent may take its time to answer: nothing is kept that only sources need.
	s.ek, s.chain = &EK{Public: s.ek.Public, Hash: s.ek.Hash}, nil
	if _, err := rand.Read(s.secret[:]); err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	ec, err := makeCredential(s.template, s.ek.Public, s.ak.name, s.secret[:])
	if err != nil {
		s.end()
		return nil, err
	}
	return encode("challenge", &challenge{EC: ec}, MaxChallengeSize)
}

// Finish checks the response to the challenge. It must be called once and ends the
// session. The error is, or wraps, ErrChallengeFailed if the response is well formed
// but wrong.
func (s *Session) Finish(response []byte) error {
	if s.state != challenged {
		return errors.New("the session is not waiting for a response")
	}
	defer s.end()
	secret, err := decodeResponse(response, s.MaxResponse())
	if err != nil {
		return fmt.Errorf("response: %w", err)
	}
	if subtle.ConstantTimeCompare(secret, s.secret[:]) != 1 {
		return ErrChallengeFailed
	}
	return nil
}

// MaxResponse returns the size of the largest response that Finish reads, by what the
// challenge has asked for.
func (s *Session) MaxResponse() int { return MaxResponseSize }

// end makes the secret unusable.
func (s *Session) end() {
	s.state = finished
	clear(s.secret[:])
}
