package doctor

import (
	"cmp"
	"context"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/preview"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A trial is an attestation with both sides in this process.
type trial struct {
	ctx    context.Context //nolint:containedctx // attestor.Activator's method takes none
	tpm    *tpm.TPM
	server *config.Config // nil without --server-config

	attestation *tpm.Attestation
	session     *attestor.Session
	asked       attestor.Ask
	evidence    sources.Evidence
	slot        *keydir.Slot      // the agent's SVID key; nil if it is not in the TPM
	svidKey     *attestor.SVIDKey // nil unless the TPM has proved it
}

// attest makes a whole attestation. If the server's configuration is known, it decides about the machine.
func (d *doctor) attest(t *tpm.TPM, c *config.Config) {
	d.progress.Now("attesting")
	try := &trial{tpm: t, server: c}
	err := d.Within(d.cmd.Context(), func(context.Context) (err error) {
		try.slot, err = t.ReadSVIDKey()
		return err
	})
	if err != nil {
		d.failed("svid key", err)
		return
	}
	err = d.ask(func(ctx context.Context) error {
		try.ctx = ctx
		return try.prove()
	})
	if err != nil {
		d.failed("attestation", err)
		return
	}
	d.ok("attestation", "the TPM proves its EK and an attestation key to a verifier")
	switch {
	case !try.asked.DevID:
	case try.evidence.Proof.DevID == nil:
		d.add("devid", statusFault, "see the agent's log", "the agent's configuration names a DevID, and none is sent")
	default:
		d.ok("devid", "the machine proves its DevID")
	}
	if try.svidKey != nil {
		d.ok("svid key", "the TPM has made the newest key of the agent's SVID, and proves it (%s)", try.slot.ID)
	}
	if c == nil {
		d.note("decision", "whether a server admits this machine is not known without --server-config")
		return
	}
	d.progress.Now("asking the server's sources")
	d.decide(try)
}

// prove runs the protocol between the two sides, up to the machine's answer.
func (t *trial) prove() (err error) {
	if t.attestation, err = t.tpm.Begin(t.ctx); err != nil {
		return err
	}
	t.attestation.UseSVIDKey(t.slot)
	prover := attestor.NewProver(t.attestation.Claim, t)
	payload, err := prover.Payload()
	if err != nil {
		return err
	}
	verifier := &attestor.Verifier{AllowWeakEK: t.server != nil && t.server.AllowWeakEK}
	if t.session, err = verifier.Begin(payload); err != nil {
		return err
	}
	t.asked = t.ask()
	challenge, err := t.session.Challenge(t.asked)
	if err != nil {
		return err
	}
	response, err := prover.Answer(challenge)
	if err != nil {
		return err
	}
	answer, err := t.session.Finish(response)
	if err != nil {
		return err
	}
	t.take(answer)
	return nil
}

// take keeps what the machine has proved, as evidence for the sources.
func (t *trial) take(answer *attestor.Answer) {
	ek := t.session.EK()
	t.svidKey = answer.SVIDKey
	t.evidence = sources.Evidence{
		EKHash: ek.Hash, EK: ek.Public, Certificate: ek.Certificate, Chain: t.session.Chain(),
		Proof: &sources.Proof{AK: t.session.AK()},
	}
	if answer.Quote != nil {
		t.evidence.Proof.Boot = boot.Of(answer.Quote, answer.EventLog, t.asked.EventLog)
	}
	if answer.DevID != nil {
		t.evidence.Proof.DevID = &sources.DevID{Chain: answer.DevID.Chain, Key: answer.DevID.Key}
	}
}

// ask returns what the server's configuration asks for and the machine can answer. Without a configuration, that
// is the DevID. The SVID key is always asked for.
func (t *trial) ask() attestor.Ask {
	ask := attestor.Ask{
		DevID:   t.session.Can(attestor.CanDevID) && (t.server == nil || t.server.AsksDevID),
		SVIDKey: true,
	}
	if t.server == nil || t.server.Quote == nil || !t.session.Can(attestor.CanPCRs) {
		return ask
	}
	q := t.server.Quote
	ask.Quote, ask.EventLog = &attestor.QuoteRequest{Bank: q.Bank, PCRs: q.PCRs}, q.EventLog != config.EventLogOff
	return ask
}

// Activate implements attestor.Activator.
func (t *trial) Activate(task *attestor.Activation) (*attestor.Activated, error) {
	done, err := t.attestation.Activate(t.ctx, task)
	if err == nil && task.EventLog {
		done.EventLog, _ = t.tpm.EventLog() // the check of the event log has reported any error
	}
	return done, err
}

// refusedBefore returns why the server refuses the machine whatever its sources say, and what to do. It returns
// empty strings if the sources decide.
func (t *trial) refusedBefore() (why, action string) {
	if t.server.SVIDKey == config.SVIDKeyRequired && t.svidKey == nil {
		return `svid_key is "required", and this agent's key is not in the TPM`,
			`configure KeyManager "tpm", and its directory as svid_key_directory of NodeAttestor "tpm"`
	}
	q := t.server.Quote
	if q == nil {
		return "", ""
	}
	const mend = "mend the event log or the quote block"
	b := t.evidence.Proof.Boot
	switch {
	case b == nil && q.Required:
		return "quote: required is true, and this TPM cannot quote its PCRs", mend
	case b != nil && q.EventLog == config.EventLogRequired:
		return boot.NoReplay(b), mend
	}
	return "", ""
}

// decide asks the server's sources once, without the network, and reports the decision.
func (d *doctor) decide(t *trial) {
	if t.server.SVIDKey == config.SVIDKeyRequired && !d.configured {
		d.add("decision", statusUnknown, "name the agent's configuration, too, whose svid_key_directory says that",
			"the server wants the key of the agent's SVID to be in the TPM, and where the agent has it is not known")
		return
	}
	if why, action := t.refusedBefore(); why != "" {
		d.add("decision", statusFault, action, "the server refuses this machine: %s", why)
		return
	}
	known := !t.server.TrustDomain.IsZero()
	if !known {
		t.server.TrustDomain = spiffeid.RequireTrustDomainFromString(preview.UnknownTrustDomain)
	}
	t.server.Examine(false)
	set, err := t.server.NewSet(admission.Options{Once: true})
	if err != nil {
		d.failed("decision", err)
		return
	}
	defer set.Close()
	ctx := d.cmd.Context()
	set.Start(ctx, nil)
	before := t.evidence
	before.Proof = nil
	decision := set.BeforeChallenge(ctx, &before)
	if decision.Outcome == policy.Challenge {
		decision = set.AfterChallenge(ctx, &t.evidence)
	}
	plan, answers := set.Plan(), decision.Answers
	report := preview.NewReport(t.server, &preview.Subject{Evidence: t.evidence}, &server.Preview{
		Answers: answers, Status: set.Status(), Rules: plan.Explain(answers), Possible: plan.Possible(answers),
		Ways: plan.Ways(answers), Decision: decision, Result: server.ResultOf(t.server, &t.evidence, &decision),
		Settled: true,
	}, false)
	d.decided(report, &decision)
	if report.SPIFFEID != "" && !known {
		d.note("decision", "%s", preview.NoTrustDomain)
	}
}

// decided reports a decision and, if the machine is not admitted, what would change that.
func (d *doctor) decided(r *preview.Report, decision *policy.Decision) {
	action := "tpm-attestor check on the server says more"
	if len(r.Changes) > 0 && len(r.Changes[0].Steps) > 0 {
		var steps []string
		for _, s := range r.Changes[0].Steps {
			steps = append(steps, s.How)
		}
		action = "to admit it, " + strings.Join(steps, ", and ")
	}
	cause := cmp.Or(r.Cause, decision.Explain())
	switch r.Decision {
	case preview.Admitted:
		d.ok("decision", "the server admits this machine by %s, as %s", strings.Join(decision.Rules, ", "), r.SPIFFEID)
	case preview.Refused:
		d.add("decision", statusFault, action, "the server refuses this machine: %s", cause)
	default:
		d.add("decision", statusUnknown, action, "the server could not tell: %s", cause)
	}
}
