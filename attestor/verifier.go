package attestor

import (
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
)

// Verifier is the server's half of the handshake. The zero value is ready to use. It is
// safe for concurrent use.
type Verifier struct {
	// AllowWeakEK accepts RSA endorsement keys with the ROCA weakness (CVE-2017-15361).
	AllowWeakEK bool
	// Enrolment is set for sessions upon which a DevID's certificate is to be issued: a DevID that
	// has a certificate is refused. A Verifier with Enrolment accepts only AKs that were made for
	// enrolments (EnrolmentPolicy), and one without it refuses them, so that the answer to a
	// challenge of one kind cannot be used for the other.
	Enrolment bool
}

// Begin checks a payload and begins a session. Every error is about the
// payload.
//
// It checks that the endorsement key has an accepted size and template, that its certificate is for
// exactly that key, and that the attestation key's own signed creation data describe an attestation
// key. Whether those data are true is established by Finish.
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
	if err == nil {
		err = v.checkPurpose(ak)
	}
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	can := slices.DeleteFunc(p.Can, func(what string) bool {
		return what != CanPCRs && what != CanEventLog && what != CanDevID
	})
	return &Session{
		ek: ek, template: tmpl, chain: p.EKChain, ak: ak, can: slices.Clip(can), asked: Ask{uncertified: v.Enrolment},
	}, nil
}

// checkPurpose checks that an AK was made for enrolments if v is for enrolments, and that it was
// not if v is not.
func (v *Verifier) checkPurpose(ak *signer) error {
	switch {
	case v.Enrolment && !ak.enrolment:
		return errors.New("AK.Public: it is not made for an enrolment: " +
			"make the request with tpm-attestor devid request")
	case !v.Enrolment && ak.enrolment:
		return errors.New("AK.Public: it is made for the enrolment of a DevID, and not for an attestation")
	}
	return nil
}

// CheckEK applies v's settings to an endorsement key that another Verifier has accepted. It returns
// an error if v does not accept the key.
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

// A Session is the server's side of one attestation: call Challenge once, then Finish once. It is
// not safe for concurrent use.
type Session struct {
	ek       *EK
	template *template
	chain    [][]byte
	ak       *signer
	can      []string // CanPCRs, CanEventLog, CanDevID

	state  sessionState
	secret [32]byte
	nonce  [nonceSize]byte
	asked  Ask
}

// Ask says what a challenge asks for besides the secret, and what Finish reads in the response.
type Ask struct {
	Quote    *QuoteRequest // nil: no quote
	EventLog bool          // the event log; requires Quote
	DevID    bool
	// SVIDKey makes Finish read an SVID key in the response and check its proof. The challenge does
	// not depend on it: an agent that has an SVID key sends it without being asked. If SVIDKey is
	// false, Finish skips the key without looking at it.
	SVIDKey bool

	uncertified bool // the DevID has no certificate: Verifier.Enrolment
}

// nonces reports whether both sides send a nonce. A quote and a DevID share the nonces; the fixed
// prefixes keep apart what is made over them.
func (a *Ask) nonces() bool { return a.Quote != nil || a.DevID }

// maxResponse returns the size of the largest response, in bytes.
func (a *Ask) maxResponse() int {
	size := MaxResponseSize
	if a.Quote != nil {
		size += responseQuoteSize
	}
	if a.EventLog {
		size += responseEventLogSize
	}
	if a.DevID {
		size += responseDevIDSize
	}
	return size
}

// Answer is what a response holds besides the secret.
type Answer struct {
	// Quote is verified: the AK has quoted exactly the PCRs that were asked for, in this
	// session. It is nil if no quote was asked for.
	Quote *Quote
	// EventLog is what the agent sent. Nothing about it is verified. It is nil if no log was asked
	// for or the agent has none. It may be longer than MaxEventLogSize, up to about 300 KiB; such a
	// log must not be read.
	EventLog []byte
	// DevID is proved: in this session, its key has signed and the AK has certified it. It is nil
	// if none was asked for. It is also nil if the agent offers a DevID but sends none: without a
	// DevID that works, a machine has only its EK, and the caller decides whether that is enough.
	DevID *DevID
	// SVIDKey is proved: the AK has certified it in this session. It is nil if Ask.SVIDKey is false
	// or the agent sends none; the caller decides whether that is enough.
	SVIDKey *SVIDKey
}

type sessionState int

const (
	begun sessionState = iota
	challenged
	finished
)

// EK returns the endorsement key that the session challenges. After Challenge, it has no
// certificate.
func (s *Session) EK() *EK { return s.ek }

// Chain returns the additional certificates that the agent sent, in DER: at most 16, each of at
// most 8 KiB, 512 values, and a key of at most 8192 bits. Nothing else about them is verified, and
// ParseCertificate may refuse them. After Challenge, it returns nil.
func (s *Session) Chain() [][]byte { return s.chain }

// AK returns the attestation key, an *rsa.PublicKey or an *ecdsa.PublicKey. Its parameters have
// been checked; that it is in the EK's TPM is proved only when Finish succeeds.
func (s *Session) AK() crypto.PublicKey {
	if s.ak == nil {
		return nil
	}
	return s.ak.public
}

// Can reports whether the agent says that it can send what: CanPCRs, CanEventLog or CanDevID.
func (s *Session) Can(what string) bool { return slices.Contains(s.can, what) }

// Challenge returns the challenge message. It must be called once. It asks for what ask says,
// except for what the agent does not offer. An error never means that the payload is bad: whatever
// Begin accepts can be challenged.
func (s *Session) Challenge(ask Ask) ([]byte, error) {
	if s.ak == nil {
		return nil, errors.New("the session has not begun")
	}
	if s.state != begun {
		return nil, errors.New("the session has been challenged already")
	}
	s.state = challenged
	// An agent may take its time to answer, so the session drops what only sources need.
	s.ek, s.chain = &EK{Public: s.ek.Public, Hash: s.ek.Hash}, nil
	msg, err := s.newChallenge(ask)
	if err != nil {
		s.end()
		return nil, err
	}
	return encode("challenge", msg, MaxChallengeSize)
}

func (s *Session) newChallenge(ask Ask) (*challenge, error) {
	msg := new(challenge)
	s.asked.DevID, s.asked.SVIDKey = ask.DevID && s.Can(CanDevID), ask.SVIDKey
	if q := ask.Quote; q != nil {
		if err := q.Validate(); err != nil {
			return nil, fmt.Errorf("ask for a quote: %w", err)
		}
		if s.Can(CanPCRs) {
			s.asked.Quote = &QuoteRequest{Bank: q.Bank, PCRs: slices.Clone(q.PCRs)}
			s.asked.EventLog = ask.EventLog && s.Can(CanEventLog)
		}
	}
	if s.asked.nonces() {
		if _, err := rand.Read(s.nonce[:]); err != nil {
			return nil, fmt.Errorf("make a nonce: %w", err)
		}
		msg.Nonce = s.nonce[:]
	}
	msg.Quote, msg.EventLog, msg.DevID = s.asked.Quote, s.asked.EventLog, s.asked.DevID
	if _, err := rand.Read(s.secret[:]); err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	var err error
	msg.EC, err = makeCredential(s.template, s.ek.Public, s.ak.name, s.secret[:])
	return msg, err
}

// Finish checks the response to the challenge and returns what it holds besides the secret. It must
// be called once and ends the session. Of a well-formed response, it checks the secret, the quote,
// the DevID and the SVID key in this order, and the error is or wraps ErrChallengeFailed,
// ErrQuoteFailed, ErrDevIDFailed or ErrSVIDKeyFailed for the first of them that is wrong. A quote
// that was asked for and is missing is wrong, too.
func (s *Session) Finish(response []byte) (*Answer, error) {
	if s.state != challenged {
		return nil, errors.New("the session is not waiting for a response")
	}
	defer s.end()
	reply, err := decodeResponse(response, &s.asked)
	if err != nil {
		return nil, fmt.Errorf("response: %w", err)
	}
	if subtle.ConstantTimeCompare(reply.secret, s.secret[:]) != 1 {
		return nil, ErrChallengeFailed
	}
	answer := &Answer{EventLog: reply.eventLog}
	if s.asked.Quote != nil {
		data := qualifyingData(s.nonce[:], reply.nonce)
		if answer.Quote, err = s.ak.checkQuote(reply.quote, s.asked.Quote, data); err != nil {
			return nil, fmt.Errorf("response: %w", err)
		}
	}
	if reply.devID != nil {
		if answer.DevID, err = s.checkDevID(reply); err != nil {
			return nil, fmt.Errorf("response: %w", err)
		}
	}
	if reply.svidKey != nil {
		if answer.SVIDKey, err = s.ak.proveSVIDKey(reply.svidKey, SVIDKeyData(s.secret[:])); err != nil {
			return nil, fmt.Errorf("response: %w", err)
		}
	}
	return answer, nil
}

// MaxResponse returns the size of the largest response that Finish reads, in bytes: 8 KiB, plus 8
// KiB if the challenge asks for a quote, 400 KiB for an event log, and 64 KiB for a DevID. An SVID
// key fits into the 8 KiB.
func (s *Session) MaxResponse() int { return s.asked.maxResponse() }

// end ends the session and erases its secret and nonce.
func (s *Session) end() {
	s.state = finished
	clear(s.secret[:])
	clear(s.nonce[:])
}
