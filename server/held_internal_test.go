package server

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// TestWhatSourcesSaidIsBounded: of a machine that has proved nothing, little is kept of what
// the sources said, whatever they said: their texts may quote the machine's certificates.
func TestWhatSourcesSaidIsBounded(t *testing.T) {
	long := strings.Repeat("x", sources.MaxReason)
	answers := []policy.Answer{
		{Verdict: sources.Verdict{Listed: true, Reason: long, Unchecked: long}},
		{Verdict: sources.Verdict{Reason: long}},
		{Err: errors.New(long)},
		{Err: fmt.Errorf("%s: %w", long, sources.ErrNeedsNetwork)},
		{Err: fmt.Errorf("%s: %w", long, sources.ErrNeedsChallenge)},
	}
	var results []string
	for _, a := range answers {
		results = append(results, a.Result())
	}
	shorten(answers)
	kept := 0
	for i, a := range answers {
		kept += len(a.Verdict.Reason) + len(a.Verdict.Unchecked)
		if a.Err != nil {
			kept += len(a.Err.Error())
		}
		if a.Result() != results[i] {
			t.Errorf("%s has become %s", results[i], a.Result())
		}
	}
	if kept > maxSaid {
		t.Errorf("%d bytes are kept", kept)
	}
	if answers[0].Verdict.Unchecked == "" {
		t.Error("what is unchecked is not counted any more")
	}
}
