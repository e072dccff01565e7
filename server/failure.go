package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// outcome is how an attestation ended, as the metrics count it.
type outcome string

// The outcomes.
const (
	outcomeAdmitted        outcome = "admitted"
	outcomeRefused         outcome = "refused"          // by policy
	outcomeUnavailable     outcome = "unavailable"      // something could not tell
	outcomeMalformed       outcome = "malformed"        // evidence that breaks a rule of the protocol
	outcomeChallengeFailed outcome = "challenge_failed" // another secret than the one sent
	outcomeNoAnswer        outcome = "no_answer"        // no answer within 60 seconds
	outcomeAgentLeft       outcome = "agent_left"       // the stream ended early
	outcomeNoID            outcome = "no_id"            // agent_path_template forms no ID
	outcomeSecondUse       outcome = "second_use"       // of an ID, although reattest is false
	outcomeInternal        outcome = "internal"         // our fault
)

var outcomes = [...]outcome{
	outcomeAdmitted, outcomeRefused, outcomeUnavailable, outcomeMalformed, outcomeChallengeFailed,
	outcomeNoAnswer, outcomeAgentLeft, outcomeNoID, outcomeSecondUse, outcomeInternal,
}

// reason is why an attestation was refused, or why the server could not tell, as the metrics count
// it. It tells apart attestations with the same outcome.
type reason string

// The reasons.
const (
	reasonDenied     reason = "deny_rule"     // a deny rule holds, or might hold
	reasonNoRule     reason = "no_allow_rule" // no allow rule holds, or it is not known whether any does
	reasonNoQuote    reason = "no_quote"      // the agent cannot quote PCRs, and has to
	reasonEventLog   reason = "event_log"     // the event log does not account for the PCRs
	reasonSVIDKey    reason = "svid_key"      // the agent has certified no SVID key, and has to
	reasonComposer   reason = "composer"      // the credential composer has not taken the SVID key
	reasonChanged    reason = "configuration" // the configuration has changed meanwhile
	reasonAgentStore reason = "agent_store"   // it is not known whether the machine was admitted before
	reasonUnsureID   reason = "id"            // it is not known which ID the machine gets
	reasonOther      reason = "other"
	reasonOpen       reason = "too_many_open"         // maxOpen
	reasonUnderWay   reason = "too_many_under_way"    // maxUnderWay
	reasonStrangers  reason = "too_many_strangers"    // maxUnknown
	reasonMessages   reason = "too_many_messages"     // maxArriving, maxAnswering
	reasonCerts      reason = "too_many_certificates" // maxStrangers
	reasonAnswers    reason = "too_many_answers"      // maxAnswers
	reasonAdmissions reason = "too_many_admissions"   // maxReserved
)

// reasons are the reasons that an outcome may have. The outcomes that are not in it have none.
var reasons = map[outcome][]reason{
	outcomeRefused: {reasonDenied, reasonNoRule, reasonNoQuote, reasonEventLog, reasonSVIDKey, reasonOther},
	outcomeUnavailable: {
		reasonDenied, reasonNoRule, reasonComposer, reasonChanged, reasonAgentStore, reasonUnsureID, reasonOther,
		reasonOpen, reasonUnderWay, reasonStrangers, reasonMessages, reasonCerts, reasonAnswers, reasonAdmissions,
	},
}

// failure is why an attestation has ended without admission.
//
// The codes: InvalidArgument if the evidence is malformed; PermissionDenied if the machine is
// refused, upon which an agent gives up; Unavailable if the server cannot tell now, upon which
// an agent tries again; DeadlineExceeded if a challenge is not answered; Internal for our own
// faults.
type failure struct {
	outcome outcome
	// reason is empty if the outcome has no reasons.
	reason reason
	code   codes.Code
	// told is what the agent learns: nothing about the content of lists.
	told string
	// why is for the log.
	why string
}

// malformed is the failure if the evidence breaks a rule of the protocol. The agent learns why,
// since the evidence is its own.
func malformed(why string) *failure {
	const most = 500
	why = clean(why, most)
	return &failure{outcome: outcomeMalformed, code: codes.InvalidArgument, told: why, why: why}
}

// left is the failure if the stream ends before the attestation.
func left(ctx context.Context, err error) *failure {
	f := &failure{outcome: outcomeAgentLeft, code: codes.Canceled, told: "the stream has ended", why: err.Error()}
	switch {
	case ctx.Err() != nil:
		f.code = status.FromContextError(ctx.Err()).Code()
	case errors.Is(err, io.EOF):
		f.why = "the stream was closed before the attestation ended"
	case status.Code(err) != codes.Unknown:
		f.code = status.Code(err)
	}
	return f
}

// notAdmitted is the failure for a decision that does not admit.
func (a *attestation) notAdmitted(ctx context.Context) *failure {
	if ctx.Err() != nil { // the sources may not have had their time
		return left(ctx, ctx.Err())
	}
	return notAdmitted(&a.decision)
}

func notAdmitted(d *policy.Decision) *failure {
	switch {
	case d.Outcome == policy.Unavailable && len(d.MaybeDenied) > 0:
		return unavailable(crowdedOr(reasonDenied, d), "deny rule "+strings.Join(d.MaybeDenied, ", ")+" might hold")
	case d.Outcome == policy.Unavailable:
		return unavailable(crowdedOr(reasonNoRule, d), "no allow rule holds, and a source cannot tell")
	case len(d.Denied) > 0:
		return refused(reasonDenied, "deny rule "+strings.Join(d.Denied, ", ")+" holds")
	default:
		return refused(reasonNoRule, "no allow rule holds")
	}
}

// crowdedOr returns r, or reasonStrangers if the decision lacks the answer of a source because too
// many strangers were waiting already.
func crowdedOr(r reason, d *policy.Decision) reason {
	for i := range d.Answers {
		if errors.Is(d.Answers[i].Err, admission.ErrCrowded) {
			return reasonStrangers
		}
	}
	return r
}

func unavailable(r reason, why string) *failure {
	return &failure{
		outcome: outcomeUnavailable, reason: r, code: codes.Unavailable,
		told: "the server cannot tell right now whether to admit this TPM", why: why,
	}
}

// tooMany is the failure if too much is under way already.
func tooMany(limit reason, why string) *failure {
	return &failure{
		outcome: outcomeUnavailable, reason: limit, code: codes.Unavailable,
		told: "the server is busy", why: why,
	}
}

func refused(r reason, why string) *failure {
	return &failure{
		outcome: outcomeRefused, reason: r, code: codes.PermissionDenied,
		told: "this TPM is not admitted", why: why,
	}
}

// fail logs a failure and returns its status.
func (a *attestation) fail(ctx context.Context, f *failure) error {
	level := hclog.Warn
	switch f.outcome {
	case outcomeAgentLeft:
		level = hclog.Debug
	case outcomeInternal:
		level = hclog.Error
	}
	a.log(ctx, level, "Attestation failed", "outcome", string(f.outcome), "reason", clean(f.why, maxLogged))
	return status.Error(f.code, f.told)
}

// logAdmission logs that a machine is admitted. SPIRE's own line about it has no reason.
func (a *attestation) logAdmission(ctx context.Context, id string) {
	if a.plugin.log.IsInfo() {
		a.log(ctx, hclog.Info, "Machine admitted", "outcome", string(outcomeAdmitted),
			"spiffe_id", id, "rules", strings.Join(a.decision.Rules, ","))
	}
}

// mostFields is more than the number of keys and values of a line.
const mostFields = 32

// log logs the line about the attestation, with what was decided and why. The EK hash in it lets
// an operator enrol a machine from the log. The names of its fields are documented, and programs
// read them.
func (a *attestation) log(ctx context.Context, level hclog.Level, message string, args ...any) {
	args = append(append(make([]any, 0, mostFields), args...), "peer", peer(ctx))
	if a.ekHash != (sources.EKHash{}) {
		args = append(args, "ek_hash", a.ekHash.String())
	}
	if a.boot != nil {
		args = append(args, "boot", clean(boot.Summary(a.boot), maxLogged))
	}
	if a.devID != nil {
		args = append(args, "devid", fingerprint(a.devID))
	}
	if a.svidKeyIn != "" {
		args = append(args, "svid_key", a.svidKeyIn)
	}
	d := &a.decision
	if names := machineNames(d); names != "" {
		args = append(args, "name", clean(names, maxLogged))
	}
	for _, list := range []struct {
		key   string
		names []string
	}{{"denied_by", d.Denied}, {"maybe_denied_by", d.MaybeDenied}, {"unsure", d.Unsure}} {
		if len(list.names) > 0 {
			args = append(args, list.key, strings.Join(list.names, ","))
		}
	}
	if len(d.Trials) > 0 {
		args = append(args, "trials", explainTrials(d.Trials))
	}
	if len(d.Answers) > 0 {
		args = append(args, "sources", clean(d.Explain(), maxLogged))
	}
	a.plugin.log.Log(level, message, args...)
}

// machineNames returns the names that lists give the machine. People know it by these, and not
// by its EK hash.
func machineNames(d *policy.Decision) string {
	var names []string
	for i := range d.Answers {
		if name := d.Answers[i].Verdict.Attributes.Name; name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// explainTrials says what the rules on trial would have done.
func explainTrials(trials []policy.Trial) string {
	all := make([]string, len(trials))
	for i, t := range trials {
		effect, would := "allow ", "would not hold"
		if t.Deny {
			effect = "deny "
		}
		switch {
		case t.Holds:
			would = "would hold"
		case t.Unsure:
			would = "might hold"
		}
		all[i] = effect + t.Rule + ": " + would
	}
	return strings.Join(all, "; ")
}
