package server

import (
	"context"

	"google.golang.org/grpc/codes"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The values of svid_key in the log and in the metrics: where the agent's SVID key is.
const (
	svidKeyInTPM = "tpm"
	svidKeyNone  = "none" // unknown: the TPM has certified no key
)

// looksAtSVIDKey reports whether the server checks agents' SVID keys.
func looksAtSVIDKey(c *config.Config) bool {
	return c.SVIDKey == config.SVIDKeyOptional || c.SVIDKey == config.SVIDKeyRequired
}

// composer returns a client of the credential composer, or nil if the configuration does not use the composer.
func (p *Plugin) composer(c *config.Config) *handover.Client {
	if !looksAtSVIDKey(c) {
		return nil
	}
	return handover.NewClient(c.SVIDKeySocket, p.family)
}

// noteSVIDKey records which SVID key the answer proves.
func (a *attestation) noteSVIDKey(answer *attestor.Answer) {
	if !a.askedSVIDKey {
		return
	}
	a.svidKey, a.svidKeyIn = answer.SVIDKey, svidKeyNone
	if a.svidKey != nil {
		a.svidKeyIn = svidKeyInTPM
	}
}

// checkSVIDKey returns the failure if the current configuration does not admit the machine with the SVID key that
// it has proved, or without one. The configuration may have changed since the challenge.
func (a *attestation) checkSVIDKey() *failure {
	switch {
	case !looksAtSVIDKey(a.Config):
		return nil
	case !a.askedSVIDKey:
		return unavailable(reasonChanged,
			"the configuration is about SVID keys, and was not when the machine was challenged")
	case a.SVIDKey == config.SVIDKeyRequired && a.svidKey == nil:
		return &failure{
			outcome: outcomeRefused, reason: reasonSVIDKey, code: codes.PermissionDenied,
			told: `the server admits only agents whose SVID key is in their TPM: use KeyManager "tpm", ` +
				`and its directory as svid_key_directory of NodeAttestor "tpm"`,
			why: `svid_key is "required", and the agent has sent no SVIDKey`,
		}
	}
	return nil
}

// svidKeySelectors returns the selectors for a proved SVID key.
func (a *attestation) svidKeySelectors() []string {
	if !looksAtSVIDKey(a.Config) || a.svidKey == nil {
		return nil
	}
	return []string{sources.PrefixSVIDKey + svidKeyInTPM}
}

// handOver tells the credential composer for which key SPIRE may sign the agent's SVID. It is the last
// step before SPIRE is told that the machine is admitted.
func (a *attestation) handOver(ctx context.Context, id spiffeid.ID) *failure {
	if !looksAtSVIDKey(a.Config) {
		return nil
	}
	key := handover.Any()
	if a.svidKey != nil {
		key = handover.Only(a.svidKey.SPKIHash)
	}
	err := a.composer.HandOver(ctx, id, key)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return left(ctx, ctx.Err())
	}
	return &failure{
		outcome: outcomeUnavailable, reason: reasonComposer, code: codes.Unavailable,
		told: "the server cannot give this agent an SVID right now: its credential composer does not answer",
		why:  err.Error(),
	}
}
