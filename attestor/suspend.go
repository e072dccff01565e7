package attestor

import (
	"bytes"
	"errors"
	"fmt"
)

// maxSuspendedSize limits the size of a suspended session, in bytes. Suspend writes less.
const maxSuspendedSize = 8 << 10

// suspended is a session that waits for its response in another process.
type suspended struct {
	EK, AK   []byte // the EK hash, and the AK's name
	Secret   []byte
	Nonce    []byte
	Quote    *QuoteRequest `json:",omitzero"`
	EventLog bool          `json:",omitzero"`
	DevID    bool          `json:",omitzero"`
}

// Suspend ends a session that has been challenged, and returns what Verifier.Resume needs to
// continue it in another process: a JSON object. Whoever can read it can answer the challenge
// without a TPM, and whoever can change it can have any answer accepted.
func (s *Session) Suspend() ([]byte, error) {
	if s.state != challenged {
		return nil, errors.New("the session is not waiting for a response")
	}
	defer s.end()
	return encode("suspended session", &suspended{
		EK: s.ek.Hash[:], AK: s.ak.name, Secret: s.secret[:], Nonce: s.nonce[:],
		Quote: s.asked.Quote, EventLog: s.asked.EventLog, DevID: s.asked.DevID,
	}, maxSuspendedSize)
}

// Resume continues a session that Suspend has ended. Call Finish next. v must have the settings of
// the Verifier that began the session. payload is the message that began it, or another one from
// the same EK and AK. The session has the certificates in payload, unlike a session after
// Challenge. The secret can be used only once if the caller resumes only once.
func (v *Verifier) Resume(payload, state []byte) (*Session, error) {
	w := new(suspended)
	if err := decode(state, maxSuspendedSize, w.decode); err != nil {
		return nil, fmt.Errorf("suspended session: %w", err)
	}
	s, err := v.Begin(payload)
	if err != nil {
		return nil, err
	}
	switch {
	case !bytes.Equal(w.EK, s.ek.Hash[:]) || !bytes.Equal(w.AK, s.ak.name):
		return nil, errors.New("suspended session: it is about another EK or AK than the payload")
	case len(w.Secret) != len(s.secret) || len(w.Nonce) != nonceSize:
		return nil, errors.New("suspended session: no Secret or no Nonce in it")
	case w.EventLog && w.Quote == nil:
		return nil, errors.New("suspended session: it asks for the event log and for no quote")
	}
	if w.Quote != nil {
		if err := w.Quote.Validate(); err != nil {
			return nil, fmt.Errorf("suspended session: Quote: %w", err)
		}
	}
	s.asked = Ask{Quote: w.Quote, EventLog: w.EventLog, DevID: w.DevID, uncertified: v.Enrolment}
	copy(s.secret[:], w.Secret)
	copy(s.nonce[:], w.Nonce)
	s.state = challenged
	return s, nil
}

func (w *suspended) decode(d *decoder, name string) (err error) {
	switch name {
	case "EK":
		w.EK, err = d.blob(name, maxDigest)
	case "AK":
		w.AK, err = d.blob(name, maxName)
	case "Secret":
		w.Secret, err = d.blob(name, maxSecretSize)
	case "Nonce":
		w.Nonce, err = d.blob(name, nonceSize)
	case "Quote":
		w.Quote = new(QuoteRequest)
		err = d.object(w.Quote.decode)
	case "EventLog":
		w.EventLog, err = d.boolean(name)
	case "DevID":
		w.DevID, err = d.boolean(name)
	default:
		err = d.skip()
	}
	return err
}
