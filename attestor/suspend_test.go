package attestor_test

import (
	"bytes"
	"crypto"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// uncertified is the claim of a machine whose DevID has no certificate yet.
type uncertified struct{ *attestortest.TPM }

func (u uncertified) Activate(a *attestor.Activation) (*attestor.Activated, error) {
	done, err := u.TPM.Activate(a)
	if err == nil && done.DevID != nil {
		done.DevID.Chain = nil
	}
	return done, err
}

// enrolee returns a TPM with a DevID and with an AK that is made for enrolments.
func enrolee(t *testing.T) *attestortest.TPM {
	t.Helper()
	return attestortest.New(t, attestortest.Options{
		EK: attestor.P256, PCRs: somePCRs(), DevID: &attestortest.DevID{CA: attestortest.NewCA(t, "devices")},
		ForgePublic: func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = attestor.EnrolmentPolicy() },
	})
}

func enrol(t *testing.T, tpm *attestortest.TPM) *attestor.Session {
	t.Helper()
	s, err := (&attestor.Verifier{Enrolment: true}).Begin(tpm.Payload(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func answerUncertified(t *testing.T, tpm *attestortest.TPM, challenge []byte) []byte {
	t.Helper()
	answer, err := attestor.NewProver(tpm.Claim(), uncertified{tpm}).Answer(challenge)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// A DevID's certificate is issued upon the same proof as in an attestation, with files that are
// carried back and forth: the session waits in a file.
func TestSuspendedEnrolment(t *testing.T) {
	t.Parallel()
	tpm := enrolee(t)
	payload := tpm.Payload(t)
	s := enrol(t, tpm)
	challenge := ask(t, s, attestor.Ask{Quote: someAsk().Quote, DevID: true})
	state, err := s.Suspend()
	if err != nil {
		t.Fatal(err)
	}
	answer := answerUncertified(t, tpm, challenge)
	if _, err := s.Finish(answer); err == nil {
		t.Error("a suspended session still takes an answer")
	}
	s, err = (&attestor.Verifier{Enrolment: true}).Resume(payload, state)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Finish(answer)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := got.DevID.Key.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(tpm.DevIDKey().Public()) || got.DevID.Chain != nil || got.Quote == nil {
		t.Errorf("proved: %+v", got)
	}
}

// No server admits a machine whose DevID has no certificate: asking for a DevID in an attestation
// means asking for its certificate. And an enrolment accepts no machine that has a certificate,
// which it would not check.
func TestUncertifiedIsAskedFor(t *testing.T) {
	t.Parallel()
	tpm := withDevID(t, attestortest.DevID{})
	s := begin(t, tpm)
	if _, err := s.Finish(answerUncertified(t, tpm, ask(t, s, attestor.Ask{DevID: true}))); err == nil {
		t.Error("a DevID without a certificate has passed an attestation")
	}
	tpm = enrolee(t)
	s = enrol(t, tpm)
	_, err := s.Finish(tpm.Answer(t, ask(t, s, attestor.Ask{DevID: true})))
	if !errors.Is(err, attestor.ErrDevIDFailed) {
		t.Errorf("a DevID with a certificate has passed an enrolment: %v", err)
	}
}

// Somebody who carries the files of an enrolment could relay a server's challenge to the machine,
// and attest in its place with the answer, without the DevID; a rogue server could have a DevID
// issued. Neither works: the AK says what it is for, and the secret is for this AK.
func TestEnrolmentIsNoAttestation(t *testing.T) {
	t.Parallel()
	if _, err := new(attestor.Verifier).Begin(enrolee(t).Payload(t)); err == nil {
		t.Error("the AK of an enrolment may attest")
	}
	attesting := withDevID(t, attestortest.DevID{})
	if _, err := (&attestor.Verifier{Enrolment: true}).Begin(attesting.Payload(t)); err == nil {
		t.Error("the AK of an attestation may enrol")
	}
}

// A suspended session continues only as the session that it was: not as another machine's, and not
// if it was truncated or altered so that a check would be left out.
func TestResumeRefuses(t *testing.T) {
	t.Parallel()
	tpm, other := withDevID(t, attestortest.DevID{}), attestortest.New(t, attestortest.Options{Number: 1})
	s := begin(t, tpm)
	if _, err := s.Suspend(); err == nil {
		t.Error("a session without a challenge was suspended")
	}
	ask(t, s, attestor.Ask{Quote: someAsk().Quote, EventLog: true, DevID: true})
	state, err := s.Suspend()
	if err != nil {
		t.Fatal(err)
	}
	resume := func(payload, state []byte) error {
		_, err := new(attestor.Verifier).Resume(payload, state)
		return err
	}
	if err := resume(tpm.Payload(t), state); err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) []byte {
		if !bytes.Contains(state, []byte(old)) {
			t.Fatalf("no %s in %s", old, state)
		}
		return bytes.Replace(state, []byte(old), []byte(with), 1)
	}
	for name, c := range map[string]struct{ payload, state []byte }{
		"another machine":   {other.Payload(t), state},
		"no payload":        {nil, state},
		"no state":          {tpm.Payload(t), nil},
		"cut off":           {tpm.Payload(t), state[:len(state)/2]},
		"no secret":         {tpm.Payload(t), replace(`"Secret"`, `"secret"`)},
		"no nonce":          {tpm.Payload(t), replace(`"Nonce"`, `"nonce"`)},
		"a secret twice":    {tpm.Payload(t), replace(`"Nonce"`, `"Secret"`)},
		"a bad quote":       {tpm.Payload(t), replace(`"Bank":"sha256"`, `"Bank":"sha1"`)},
		"a log alone":       {tpm.Payload(t), replace(`"Quote":`, `"EventLog":true,"quote":`)},
		"no boolean":        {tpm.Payload(t), replace(`"DevID":true`, `"DevID":1`)},
		"a session's start": {tpm.Payload(t), tpm.Payload(t)},
	} {
		if err := resume(c.payload, c.state); err == nil {
			t.Errorf("%s: resumed", name)
		}
	}
}
