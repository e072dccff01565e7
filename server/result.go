package server

import (
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A Result is what a decision comes to for an agent.
type Result struct {
	// Outcome is how the attestation ends, as the log and the metrics say it.
	Outcome string
	// Code and Message are what the agent gets. The code is codes.OK if it is admitted.
	Code    codes.Code
	Message string
	// Reason is why the machine is not admitted, as the log says it.
	Reason string
	// SPIFFEID and Selectors are what an admitted machine gets.
	SPIFFEID  string
	Selectors []string
}

// ResultOf returns what Attest makes of a decision after the challenge about a machine that has
// proved nothing of its boot. ev.EK may be nil if only its hash is known. Whether reattest = false
// refuses the machine depends on SPIRE's AgentStore, and is not in the result.
func ResultOf(c *config.Config, ev *sources.Evidence, d *policy.Decision) Result {
	if ev.EK != nil {
		verifier := attestor.Verifier{AllowWeakEK: c.AllowWeakEK}
		if err := verifier.CheckEK(ev.EK); err != nil {
			return malformed("payload: EK: " + err.Error()).result()
		}
	}
	if d.Outcome != policy.Admitted {
		return notAdmitted(d).result()
	}
	id, failed := idOf(c, ev.EKHash, d)
	if failed != nil {
		return failed.result()
	}
	return Result{
		Outcome: string(outcomeAdmitted), Code: codes.OK,
		SPIFFEID: id.String(), Selectors: selectors(ev.EKHash, d, nil),
	}
}

func (f *failure) result() Result {
	return Result{Outcome: string(f.outcome), Code: f.code, Message: f.told, Reason: f.why}
}
