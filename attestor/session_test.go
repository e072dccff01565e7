package attestor_test

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func begin(t testing.TB, tpm *attestortest.TPM) *attestor.Session {
	t.Helper()
	var v attestor.Verifier
	s, err := v.Begin(tpm.Payload(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func challenge(t testing.TB, s *attestor.Session) []byte {
	t.Helper()
	msg, err := s.Challenge(attestor.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// A secret can be used only once, and nobody can try several in one session: calls that come twice
// or in the wrong order are errors and do not panic.
func TestSessionOrder(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})

	s := begin(t, tpm)
	if _, err := s.Finish(wrongAnswer); err == nil || errors.Is(err, attestor.ErrChallengeFailed) {
		t.Errorf("Finish before Challenge: %v", err)
	}
	answer := tpm.Answer(t, challenge(t, s))
	if msg, err := s.Challenge(attestor.Ask{}); err == nil {
		t.Errorf("a second challenge: %s", msg)
	}
	if _, err := s.Finish(answer); err != nil {
		t.Errorf("the right answer: %v", err)
	}
	if _, err := s.Finish(answer); err == nil {
		t.Error("the right answer is taken twice")
	}
	if _, err := s.Finish(wrongAnswer); err == nil {
		t.Error("zeros are taken once the secret is wiped")
	}
	if msg, err := s.Challenge(attestor.Ask{}); err == nil {
		t.Errorf("a challenge after the end: %s", msg)
	}

	s = begin(t, tpm)
	answer = tpm.Answer(t, challenge(t, s))
	if _, err := s.Finish(wrongAnswer); !errors.Is(err, attestor.ErrChallengeFailed) {
		t.Errorf("a wrong answer: %v, want ErrChallengeFailed", err)
	}
	if _, err := s.Finish(answer); err == nil {
		t.Error("the right answer is taken after a wrong one")
	}

	var zero attestor.Session
	if zero.EK() != nil || zero.AK() != nil || zero.Chain() != nil {
		t.Error("the zero session knows something")
	}
	if _, err := zero.Challenge(attestor.Ask{}); err == nil {
		t.Error("the zero session challenges")
	}
	if _, err := zero.Finish(wrongAnswer); err == nil {
		t.Error("the zero session admits")
	}
}

// Two sessions of one machine share nothing: the answer to one is wrong in the other.
func TestAnswerOfAnotherSession(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	one, two := begin(t, tpm), begin(t, tpm)
	answer := tpm.Answer(t, challenge(t, one))
	challenge(t, two)
	if _, err := two.Finish(answer); !errors.Is(err, attestor.ErrChallengeFailed) {
		t.Errorf("%v, want ErrChallengeFailed", err)
	}
}

// A response without a secret is malformed, which is not the same as wrong. A response that
// is too long is refused before it is read.
func TestBadResponses(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	long := func(n int) string { return `{"Secret":"` + strings.Repeat("AAAA", n/4) + `"}` }
	sized := func(n int) string {
		const around = `{"x":"","Secret":"AAAA"}`
		return `{"x":"` + strings.Repeat("x", n-len(around)) + around[len(`{"x":"`):]
	}
	for name, test := range map[string]struct {
		msg   string
		wrong bool // well formed and wrong
	}{
		"nothing":                {``, false},
		"no object":              {`"AAAA"`, false},
		"null":                   {`null`, false},
		"no secret":              {`{}`, false},
		"secret null":            {`{"Secret":null}`, false},
		"secret empty":           {`{"Secret":""}`, false},
		"secret of another case": {`{"secret":"AAAA"}`, false},
		"secret a number":        {`{"Secret":7}`, false},
		"secret an object":       {`{"Secret":{}}`, false},
		"secret twice":           {`{"Secret":"AAAA","Secret":"AAAA"}`, false},
		"secret not base64":      {`{"Secret":"A*AA"}`, false},
		"secret of base64url":    {`{"Secret":"__--"}`, false},
		"secret without padding": {`{"Secret":"AA"}`, false},
		"secret with bits over":  {`{"Secret":"AB=="}`, false},
		"secret with line ends":  {`{"Secret":"AA\nAA"}`, false},
		"secret of 65 bytes":     {`{"Secret":"` + encode64(make([]byte, 65)) + `"}`, false},
		"a huge secret":          {long(2 << 20), false},
		"something behind":       {`{"Secret":"AAAA"} 1`, false},
		"cut":                    {`{"Secret":"AAAA"`, false},
		"of 8193 bytes":          {sized(8<<10 + 1), false},
		"many values":            {`{"x":[` + strings.Repeat(`0,`, 1<<20) + `0],"Secret":"AAAA"}`, false},
		"nested":                 {`{"x":` + strings.Repeat(`[`, 1<<20), false},
		"a short secret":         {`{"Secret":"AAAA"}`, true},
		"a long secret":          {`{"Secret":"` + encode64(make([]byte, 64)) + `"}`, true},
		"of 8192 bytes":          {sized(8 << 10), true},
		"an escaped secret":      {`{"Secret":"\u0041AAA"}`, true},
		"white space":            {" {\n\t\"Secret\" : \"AAAA\" }\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, tpm)
			challenge(t, s)
			wantRefused(t, s, []byte(test.msg), attestor.ErrChallengeFailed, test.wrong)
		})
	}
}

// wantRefused fails the test unless Finish refuses a response with a short error. If wrong is true,
// that must be failed and no other of the errors for a response that is well formed but wrong.
// Otherwise the response is malformed, and the error must be none of them.
func wantRefused(t *testing.T, s *attestor.Session, response []byte, failed error, wrong bool) {
	t.Helper()
	answer, err := s.Finish(response)
	if err == nil || answer != nil {
		t.Fatalf("the response is accepted: %v", answer)
	}
	for _, known := range []error{
		attestor.ErrChallengeFailed, attestor.ErrQuoteFailed, attestor.ErrDevIDFailed, attestor.ErrSVIDKeyFailed,
	} {
		want := wrong && errors.Is(failed, known)
		if got := errors.Is(err, known); got != want {
			t.Errorf("%v: it is %q: %t, want %t", err, known, got, want)
		}
	}
	if len(err.Error()) > 300 {
		t.Errorf("an error of %d bytes: %v", len(err.Error()), err)
	}
}
