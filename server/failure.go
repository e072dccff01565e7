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

// outcome is how an attestation ended. It is a label of the metrics.
type outcome string

// The outcomes.
const (
	outcomeAdmitted        outcome = "admitted"
	outcomeRefused         outcome = "refused"          // by policy
	outcomeUnavailable     outcome = "unavailable"      // a source or a service could not tell
	outcomeMalformed       outcome = "malformed"        // evidence that breaks a rule of the protocol
	outcomeChallengeFailed outcome = "challenge_failed" // a wrong secret, quote, DevID or SVID key
	outcomeNoAnswer        outcome = "no_answer"        // no answer within 60 seconds
	outcomeAgentLeft       outcome = "agent_left"       // the stream ended early
	outcomeNoID            outcome = "no_id"            // agent_path_template forms no ID
	outcomeSecondUse       outcome = "second_use"       // reattest is false, and the ID was used before
	outcomeInternal        outcome = "internal"         // a fault of the server
)

var outcomes = [...]outcome{
	outcomeAdmitted, outcomeRefused, outcomeUnavailable, outcomeMalformed, outcomeChallengeFailed,
	outcomeNoAnswer, outcomeAgentLeft, outcomeNoID, outcomeSecondUse, outcomeInternal,
}

// reason is why an attestation was refused, or why the server could not tell. It is a label of the metrics, and
// distinguishes attestations that have the same outcome.
type reason string

// The reasons.
const (
	reasonDenied     reason = "deny_rule"     // a deny rule holds, or might hold
	reasonNoRule     reason = "no_allow_rule" // no allow rule holds, or it is not known whether any does
	reasonNoQuote    reason = "no_quote"      // the agent must quote PCRs and cannot
	reasonEventLog   reason = "event_log"     // the event log does not account for the PCRs
	reasonSVIDKey    reason = "svid_key"      // the agent must have an SVID key that its TPM certifies, and has none
	reasonComposer   reason = "composer"      // the credential composer did not accept the SVID key
	reasonChanged    reason = "configuration" // the configuration changed during the attestation
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

// reasons maps an outcome to the reasons that it may have. An outcome without an entry has none.
var reasons = map[outcome][]reason{
	outcomeRefused: {reasonDenied, reasonNoRule, reasonNoQuote, reasonEventLog, reasonSVIDKey, reasonOther},
	outcomeUnavailable: {
		reasonDenied, reasonNoRule, reasonComposer, reasonChanged, reasonAgentStore, reasonUnsureID, reasonOther,
		reasonOpen, reasonUnderWay, reasonStrangers, reasonMessages, reasonCerts, reasonAnswers, reasonAdmissions,
	},
}

// failure is why an attestation ended without admission.
//
// Its code is InvalidArgument if the evidence is malformed, PermissionDenied if the machine is refused (the agent
// gives up), Unavailable if the server cannot tell now (the agent tries again), DeadlineExceeded if a challenge is
// not answered, and Internal if the fault is the server's.
type failure struct {
	outcome outcome
	// reason is empty if the outcome has no reasons.
	reason reason
	code   codes.Code
	// told is the message for the agent. It says nothing about the content of lists.
	told string
	// why is the message for the log.
	why string
}

// malformed returns the failure for evidence that breaks a rule of the protocol. The agent learns why, since the
// evidence is its own.
func malformed(why string) *failure {
	const most = 500
	why = clean(why, most)
	return &failure{outcome: outcomeMalformed, code: codes.InvalidArgument, told: why, why: why}
}

// left returns the failure for a stream that ended before the attestation did.
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

// notAdmitted returns the failure for a decision that does not admit the machine.
func (a *attestation) notAdmitted(ctx context.Context) *failure {
	if ctx.Err() != nil { // the sources may not have had time to answer
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

// crowdedOr returns reasonStrangers if a source did not answer because too many strangers were waiting already, and
// r otherwise.
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

// tooMany returns the failure if a limit of the server is reached.
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

// logAdmission logs that a machine is admitted, and by which rules: SPIRE's own line does not say that.
func (a *attestation) logAdmission(ctx context.Context, id string) {
	if a.plugin.log.IsInfo() {
		a.log(ctx, hclog.Info, "Machine admitted", "outcome", string(outcomeAdmitted),
			"spiffe_id", id, "rules", strings.Join(a.decision.Rules, ","))
	}
}

// mostFields is the initial capacity for the keys and values of a line, and more than any line has.
const mostFields = 32

// log logs a line about the attestation, with the decision and the reasons for it. An operator can enrol a machine
// by the EK hash in the line. The names of the fields are documented, and programs read them.
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

// machineNames returns the names that lists give the machine. People know the machine by its name rather than by
// its EK hash.
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
