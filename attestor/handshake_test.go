package attestor_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// tpmKinds are TPMs with every EK template and every AK.
func tpmKinds() []attestortest.Options {
	var all []attestortest.Options
	for _, ek := range []attestor.KeyType{
		attestor.RSA2048, attestor.RSA3072, attestor.RSA4096, attestor.P256, attestor.P384, attestor.P521,
	} {
		for _, high := range []bool{false, true} {
			for _, ak := range []attestor.KeyType{attestor.P256, attestor.P384, attestor.P521, attestor.RSA2048} {
				all = append(all, attestortest.Options{EK: ek, AK: ak, HighRange: high})
			}
		}
	}
	return append(all, attestortest.Options{AK: attestor.RSA2048, PSS: true})
}

func describe(o attestortest.Options) string {
	return fmt.Sprintf("ek=%s,high=%t,ak=%s,pss=%t", o.EK, o.HighRange, o.AK, o.PSS)
}

// Every accepted type of endorsement key attests with every type of AK: the server accepts
// the answer that only the TPM can give.
func TestHandshake(t *testing.T) {
	t.Parallel()
	for _, o := range tpmKinds() {
		t.Run(describe(o), func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, o)
			var v attestor.Verifier
			s, err := v.Begin(tpm.Payload(t))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := hex.EncodeToString(s.EK().Hash[:]), tpm.EKHash(); got != want || want == "" {
				t.Errorf("EK hash %q, want %q", got, want)
			}
			challenge, err := s.Challenge(attestor.Ask{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Finish(tpm.Answer(t, challenge)); err != nil {
				t.Error(err)
			}
		})
	}
}

// A machine that sends another machine's payload cannot answer the challenge: neither
// without the EK, nor with the EK's TPM if the AK is in another TPM.
func TestHandshakeOfAnother(t *testing.T) {
	t.Parallel()
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384, attestor.RSA3072} {
		honest := attestortest.New(t, attestortest.Options{EK: ek})
		for name, thief := range map[string]*attestortest.TPM{
			"another EK": attestortest.New(t, attestortest.Options{EK: ek, Number: 1}),
			"another AK": attestortest.New(t, attestortest.Options{EK: ek}),
		} {
			t.Run(fmt.Sprintf("%s/%s", ek, name), func(t *testing.T) {
				t.Parallel()
				var v attestor.Verifier
				s, err := v.Begin(honest.Payload(t))
				if err != nil {
					t.Fatal(err)
				}
				challenge, err := s.Challenge(attestor.Ask{})
				if err != nil {
					t.Fatal(err)
				}
				if b, err := attestor.NewProver(thief.Claim(), thief).Answer(challenge); err == nil {
					t.Errorf("the thief answered %s", b)
				}
				guess := []byte(`{"Secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`)
				if _, err := s.Finish(guess); !errors.Is(err, attestor.ErrChallengeFailed) {
					t.Errorf("a guess: %v, want ErrChallengeFailed", err)
				}
			})
		}
	}
}
