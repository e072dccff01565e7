package server

import (
	"encoding/hex"
	"fmt"
	"reflect"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// chooseQuote sets which quote the challenge asks for, if any: it depends on the current configuration and on what
// the agent can answer.
func (a *attestation) chooseQuote(session *attestor.Session) *failure {
	switch a.asked = a.Quote; {
	case a.asked == nil || session.Can(attestor.CanPCRs):
	case a.asked.Required:
		return &failure{
			outcome: outcomeRefused, reason: reasonNoQuote, code: codes.PermissionDenied,
			told: "the server admits only machines that quote their PCRs, and this agent cannot",
			why:  "quote: required is true, and the agent does not offer to quote PCRs",
		}
	default:
		a.asked = nil
	}
	return nil
}

// ask returns what the challenge asks for.
func (a *attestation) ask() attestor.Ask {
	ask := attestor.Ask{DevID: a.askedDevID, SVIDKey: a.askedSVIDKey}
	if q := a.asked; q != nil {
		ask.Quote, ask.EventLog = &attestor.QuoteRequest{Bank: q.Bank, PCRs: q.PCRs}, q.EventLog != config.EventLogOff
	}
	return ask
}

// judge sets what the machine has proved besides its EK: its boot and its DevID.
func (a *attestation) judge(answer *attestor.Answer) *failure {
	devID, size := devIDOf(answer)
	size += int64(len(answer.EventLog))
	if !a.plugin.held.answers.take(size) {
		return tooMany(reasonAnswers, "too many event logs and DevIDs are held")
	}
	a.answered, a.devID = size, devID
	if answer.Quote != nil {
		a.boot = boot.Of(answer.Quote, answer.EventLog, a.ask().EventLog)
	}
	return nil
}

// releaseAnswer gives the bytes of the event log and the DevID back to their budget.
func (a *attestation) releaseAnswer() { a.plugin.held.answers.give(a.answered) }

// checkBoot checks what the machine has proved about its boot against the configuration that is current now.
func (a *attestation) checkBoot(session *attestor.Session) *failure {
	asked := a.asked
	if failed := a.chooseQuote(session); failed != nil {
		return failed
	}
	switch {
	case a.asked == nil:
		return nil
	case !reflect.DeepEqual(asked, a.asked):
		return unavailable(reasonChanged, "the configuration asks for another quote than the challenge did")
	case a.asked.EventLog != config.EventLogRequired:
		return nil
	}
	why := boot.NoReplay(a.boot)
	if why == "" {
		return nil
	}
	return &failure{
		outcome: outcomeRefused, reason: reasonEventLog, code: codes.PermissionDenied,
		told: "the server admits only machines whose event log accounts for their PCRs",
		why:  `quote: event_log is "required": ` + why,
	}
}

// bootSelectors returns the selectors for what a machine has proved about its boot. q is the quote that was asked
// for.
func bootSelectors(b *sources.Boot, q *config.Quote) []string {
	if b == nil || q == nil {
		return nil
	}
	var s []string
	for _, pcr := range q.Selectors {
		if value, ok := b.PCRs[pcr]; ok {
			s = append(s, fmt.Sprintf("%s%d:%s:%s", sources.PrefixPCR, pcr, b.Bank, hex.EncodeToString(value)))
		}
	}
	if b.Log != nil {
		s = appendValue(s, sources.PrefixSecureBoot, b.Log.SecureBoot)
	}
	return s
}
