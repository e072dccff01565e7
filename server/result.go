package server

import (
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A Result is what an agent gets from a decision.
type Result struct {
	// Outcome is how the attestation ends, in the words of the log and the metrics.
	Outcome string
	// Code and Message are what the agent gets. The code is codes.OK if it is admitted.
	Code    codes.Code
	Message string
	// Reason is why the machine is not admitted, in the words of the log.
	Reason string
	// SPIFFEID and Selectors are what an admitted machine gets.
	SPIFFEID  string
	Selectors []string
}

// ResultOf returns what Attest makes of a decision after the challenge, for a machine that has proved nothing about
// its boot. ev.EK may be nil if only its hash is known. The result leaves out whether reattest = false refuses the
// machine, since that depends on SPIRE's AgentStore.
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
