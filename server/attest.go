package server

import (
	"context"
	"crypto"
	"errors"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/server/guard"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// answerTimeout limits how long an agent takes to answer its challenge, and how long SPIRE takes to send the
// payload after it has opened the stream.
const answerTimeout = 60 * time.Second

// attestation is one attestation in progress. Only one goroutine uses it.
type attestation struct {
	*generation // the one that was current when the payload arrived, and from decide on the one that decides
	plugin      *Plugin
	stream      nodeattestorv1.NodeAttestor_AttestServer
	begun       time.Time

	ekHash sources.EKHash // zero until the payload is checked
	asked  *config.Quote  // the quote that the challenge asked for; nil if none
	// askedDevID is whether the challenge asked for the machine's DevID.
	askedDevID bool
	boot       *sources.Boot  // what the machine has proved about its boot; nil if nothing
	devID      *sources.DevID // the DevID that the machine has proved; nil if none
	// askedSVIDKey is true if an SVID key in the response is checked. If so, svidKeyIn is
	// svidKeyInTPM or svidKeyNone once the machine has answered.
	askedSVIDKey bool
	svidKeyIn    string
	svidKey      *attestor.SVIDKey // the SVID key that the machine has proved; nil if none
	answered     int64             // bytes taken from budgets.answers for the event log and the DevID
	decision     policy.Decision   // the latest one
}

// Attest implements the NodeAttestor service: it receives a payload, sends one challenge and checks the answer. See
// failure for the codes of its errors.
func (p *Plugin) Attest(stream nodeattestorv1.NodeAttestor_AttestServer) (err error) {
	defer guard.Recover(p.log, &err, "Attest", "peer", peer(stream.Context()))
	g := p.current.Load()
	if g == nil {
		return status.Error(codes.FailedPrecondition, "the plugin is not configured")
	}
	a := &attestation{generation: g, plugin: p, stream: stream, begun: time.Now()}
	// Deferred, so that a panic is counted too.
	outcome, why := outcomeInternal, reason("")
	defer func() {
		p.metrics.attested(outcome, time.Since(a.begun), &a.decision)
		p.metrics.explain(outcome, why)
	}()
	attributes, failed := a.run(stream.Context())
	if failed != nil {
		outcome, why = failed.outcome, failed.reason
		return a.fail(stream.Context(), failed)
	}
	err = stream.Send(&nodeattestorv1.AttestResponse{
		Response: &nodeattestorv1.AttestResponse_AgentAttributes{AgentAttributes: attributes},
	})
	if err != nil {
		outcome = outcomeAgentLeft
		return a.fail(stream.Context(), left(stream.Context(), err))
	}
	outcome = outcomeAdmitted
	p.metrics.proved(a.boot, a.devID)
	if a.svidKeyIn != "" {
		p.metrics.add(ofSVIDKey(a.svidKeyIn), 1)
	}
	a.logAdmission(stream.Context(), attributes.GetSpiffeId())
	a.noteAddress(stream.Context())
	return nil
}

// run carries out the attestation, from the payload to the agent's attributes.
func (a *attestation) run(ctx context.Context) (*nodeattestorv1.AgentAttributes, *failure) {
	defer a.plugin.open.Add(-1)
	if a.plugin.open.Add(1) > maxOpen {
		return nil, tooMany(reasonOpen, "too many attestations are open")
	}
	first, failed := receive(ctx, attestor.MaxPayloadSize, &a.plugin.held.payloads)
	if failed != nil {
		return nil, failed
	}
	defer first.release()
	// A stream counts as under way only after its payload has arrived.
	defer a.plugin.underWay.Add(-1)
	if a.plugin.underWay.Add(1) > maxUnderWay {
		return nil, tooMany(reasonUnderWay, "too many attestations are in progress")
	}
	session, failed := a.begin(first)
	if failed != nil {
		return nil, failed
	}
	ek := session.EK()
	a.ekHash = ek.Hash
	if failed := a.chooseQuote(session); failed != nil {
		return nil, failed
	}
	a.askedDevID = a.mayAskDevID(session)
	a.askedSVIDKey = looksAtSVIDKey(a.Config)
	held := hold(&sources.Evidence{
		EKHash: ek.Hash, EK: ek.Public, Certificate: ek.Certificate, Chain: session.Chain(),
	}, &a.plugin.held.asked)
	defer held.release()
	a.decision = a.set.BeforeChallenge(ctx, held.evidence)
	if a.decision.Outcome != policy.Challenge {
		return nil, a.notAdmitted(ctx)
	}
	shorten(a.decision.Answers)
	held.move(a.plugin.held.of(a.decision.Known))
	if !a.decision.Known {
		if held.evidence.Incomplete {
			return nil, tooMany(reasonCerts, "the certificates of too many TPMs that no source lists so far are held")
		}
		if !a.plugin.strangers.Take() {
			return nil, tooMany(reasonStrangers,
				"too many attestations of TPMs that no source lists so far are in progress")
		}
		defer a.plugin.strangers.Leave()
	}
	defer a.releaseAnswer()
	if failed := a.challenge(ctx, session); failed != nil {
		return nil, failed
	}
	proven := *held.evidence // a copy: a check that is stuck may still read the other
	proven.Proof = &sources.Proof{AK: session.AK(), Boot: a.boot, DevID: a.devID}
	if failed := a.decide(ctx, session, &proven); failed != nil {
		return nil, failed
	}
	return a.admit(ctx)
}

// decide asks the sources about a machine that has answered its challenge. That may take long: if the configuration
// changes meanwhile, the new one decides.
func (a *attestation) decide(ctx context.Context, session *attestor.Session, proven *sources.Evidence) *failure {
	for decided := false; !decided; decided = a.plugin.current.Load() == a.generation {
		if failed := a.renew(proven.EK); failed != nil {
			return failed
		}
		if failed := a.checkBoot(session); failed != nil {
			return failed
		}
		if failed := a.checkDevID(session); failed != nil {
			return failed
		}
		if failed := a.checkSVIDKey(); failed != nil {
			return failed
		}
		a.decision = a.set.AfterChallenge(ctx, proven)
	}
	if a.decision.Outcome != policy.Admitted {
		return a.notAdmitted(ctx)
	}
	return nil
}

// renew switches to the configuration that is current now, so that a machine cannot hold its challenge open to
// escape a change of the rules.
func (a *attestation) renew(ek crypto.PublicKey) *failure {
	g := a.plugin.current.Load()
	if g == nil {
		return unavailable(reasonChanged, "the plugin is shutting down")
	}
	if g == a.generation {
		return nil
	}
	a.generation = g
	if err := g.verifier.CheckEK(ek); err != nil {
		return malformed("payload: EK: " + err.Error())
	}
	return nil
}

// begin verifies the payload and releases the message.
func (a *attestation) begin(first *incoming) (*attestor.Session, *failure) {
	defer first.release()
	message, ok := first.req.GetRequest().(*nodeattestorv1.AttestRequest_Payload)
	if !ok {
		return nil, malformed("the first message is not a payload")
	}
	a.plugin.checking <- struct{}{}
	defer func() { <-a.plugin.checking }()
	session, err := a.verifier.Begin(message.Payload)
	if err != nil {
		return nil, malformed(err.Error())
	}
	return session, nil
}

// challenge challenges the machine to prove that its AK and its EK are in the same TPM, and whatever else the
// configuration asks for.
func (a *attestation) challenge(ctx context.Context, session *attestor.Session) *failure {
	challenge, err := session.Challenge(a.ask())
	if err != nil {
		return &failure{
			outcome: outcomeInternal, code: codes.Internal,
			told: "the server cannot challenge this TPM", why: err.Error(),
		}
	}
	err = a.stream.Send(&nodeattestorv1.AttestResponse{
		Response: &nodeattestorv1.AttestResponse_Challenge{Challenge: challenge},
	})
	if err != nil {
		return left(ctx, err)
	}
	second, failed := receive(ctx, session.MaxResponse(), &a.plugin.held.responses)
	if failed != nil {
		return failed
	}
	defer second.release()
	message, ok := second.req.GetRequest().(*nodeattestorv1.AttestRequest_ChallengeResponse)
	if !ok {
		return malformed("the second message is not a response to the challenge")
	}
	a.plugin.checking <- struct{}{}
	defer func() { <-a.plugin.checking }()
	answer, err := session.Finish(message.ChallengeResponse)
	switch {
	case errors.Is(err, attestor.ErrChallengeFailed):
		return challengeFailed("the answer to the challenge is wrong", err)
	case errors.Is(err, attestor.ErrQuoteFailed):
		return challengeFailed("the quote in the answer to the challenge is missing or wrong", err)
	case errors.Is(err, attestor.ErrDevIDFailed):
		return challengeFailed("the DevID in the answer to the challenge is wrong", err)
	case errors.Is(err, attestor.ErrSVIDKeyFailed):
		return challengeFailed("the SVID key in the answer to the challenge is wrong", err)
	case err != nil:
		return malformed(err.Error())
	}
	a.noteSVIDKey(answer)
	return a.judge(answer)
}

// challengeFailed returns the failure for an answer that does not prove what the challenge asked for.
func challengeFailed(told string, err error) *failure {
	return &failure{outcome: outcomeChallengeFailed, code: codes.PermissionDenied, told: told, why: err.Error()}
}

// admit returns the attributes of an admitted machine, for SPIRE.
func (a *attestation) admit(ctx context.Context) (*nodeattestorv1.AgentAttributes, *failure) {
	id, failed := idOf(a.Config, a.ekHash, &a.decision)
	if failed != nil {
		return nil, failed
	}
	if !a.Reattest {
		if failed := a.plugin.firstUse(ctx, id); failed != nil {
			return nil, failed
		}
	}
	proved := slices.Concat(bootSelectors(a.boot, a.asked), a.svidKeySelectors())
	attributes := &nodeattestorv1.AgentAttributes{
		SpiffeId:       id.String(),
		SelectorValues: selectors(a.ekHash, &a.decision, proved),
		CanReattest:    a.Reattest,
	}
	if failed := a.handOver(ctx, id); failed != nil {
		return nil, failed
	}
	return attributes, nil
}

// idOf returns the SPIFFE ID of an admitted machine, or the failure if there is none.
func idOf(c *config.Config, ekHash sources.EKHash, d *policy.Decision) (spiffeid.ID, *failure) {
	id, err := agentID(c, ekHash, d)
	switch {
	case errors.Is(err, errUnsure):
		return spiffeid.ID{}, &failure{
			outcome: outcomeUnavailable, reason: reasonUnsureID, code: codes.Unavailable,
			told: "the server cannot tell right now which SPIFFE ID this machine gets", why: err.Error(),
		}
	case err != nil:
		return spiffeid.ID{}, &failure{
			outcome: outcomeNoID, code: codes.PermissionDenied,
			told: "no SPIFFE ID can be formed for this machine", why: err.Error(),
		}
	}
	return id, nil
}
