package admission_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// Stops unchecked certificates from going unnoticed, and strangers from filling the log with
// them: each reason is a warning once in ten minutes, for eight reasons at most.
func TestUncheckedIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		what := ""
		fake := sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{Listed: true, Unchecked: what}, nil
		})
		j := newJournal()
		s := newSet(t, allow(policy.Rule{All: []string{"x"}}), admission.Options{Log: slogOf(j)}, member("x", fake))
		j.take()
		ask := func(text string) {
			what = text
			d := attest(t, s, sourcetest.NewEvidence(t))
			if d.Outcome != policy.Admitted || d.Answers[0].Verdict.Unchecked != text[:min(len(text), 1024)] {
				t.Errorf("%v: %+v", d.Outcome, d.Answers)
			}
		}
		ask("")
		j.wantLines(t)
		ask("the host is down")
		ask("the host is down")
		j.wantLines(t, "the host is down")
		time.Sleep(10 * time.Minute)
		ask("the host is down")
		j.wantLines(t, "the host is down")
		for i := range 100 {
			ask(fmt.Sprint("reason ", i))
		}
		if n := len(j.take()); n != 7 {
			t.Errorf("%d lines", n)
		}
		ask(strings.Repeat("x", 5000))
	})
}

// If a TPM is not listed, nothing about it was left unchecked.
func TestUncheckedOfOneThatIsNotListed(t *testing.T) {
	fake := sourcetest.NewFake(func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Unchecked: "x"}, nil
	})
	s := newSet(t, allow(policy.Rule{All: []string{"x"}}), admission.Options{}, member("x", fake))
	if d := attest(t, s, sourcetest.NewEvidence(t)); d.Answers[0].Verdict.Unchecked != "" {
		t.Errorf("%+v", d.Answers)
	}
}
