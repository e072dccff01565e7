// Package boot turns what a machine has proved about its boot into what sources get: the quoted PCRs, and what the
// event log says as far as it agrees with them.
package boot

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Of returns what a machine has proved about its boot by a verified quote. log is the event log that it sent with
// the quote, nil if it sent none; asked says whether a log was asked for. The result may refer to the memory of
// both.
func Of(quote *attestor.Quote, log []byte, asked bool) *sources.Boot {
	b := &sources.Boot{Bank: quote.Bank, PCRs: quote.PCRs}
	switch {
	case !asked:
		b.NoLog = "no event log was asked for"
	case len(log) == 0:
		b.NoLog = "the machine sent no event log"
	default:
		judged, err := judge(quote, log)
		if err != nil {
			b.NoLog = "the event log cannot be read: " + err.Error()
			break
		}
		b.Log = said(judged)
	}
	return b
}

func judge(quote *attestor.Quote, log []byte) (*eventlog.Judged, error) {
	parsed, err := eventlog.Parse(log)
	if err != nil {
		return nil, err
	}
	return parsed.Judge(quote.Bank, quote.PCRs)
}

// said returns what a log says, in the types of package sources.
func said(j *eventlog.Judged) *sources.BootLog {
	l := &sources.BootLog{
		Replays: j.Replays, SecureBoot: j.SecureBoot, NoSecureBoot: j.NoSecureBoot,
		DB: sources.Measured(j.DB), DBX: sources.Measured(j.DBX),
		Authorities: sources.Measured(j.Authorities), Images: sources.Measured(j.Images),
		Events: make([]sources.BootEvent, len(j.Events)),
	}
	for i, e := range j.Events {
		l.Events[i] = sources.BootEvent(e)
	}
	return l
}

// NoReplay says, for people, why the event log does not account for the quoted PCRs that logs are checked against.
// It returns an empty string if the log does.
func NoReplay(b *sources.Boot) string {
	if b.Log == nil {
		return b.NoLog
	}
	var not []string
	for _, pcr := range slices.Sorted(maps.Keys(b.Log.Replays)) {
		if !b.Log.Replays[pcr] {
			not = append(not, strconv.Itoa(pcr))
		}
	}
	if len(not) == 0 {
		return ""
	}
	return "the event log does not replay to PCR " + strings.Join(not, ", ")
}

// Summary describes b in one line for the log. It quotes nothing from the event log.
func Summary(b *sources.Boot) string {
	s := fmt.Sprintf("%s PCRs %s", b.Bank, strings.Trim(strings.ReplaceAll(
		fmt.Sprint(slices.Sorted(maps.Keys(b.PCRs))), " ", ","), "[]"))
	if fault := NoReplay(b); fault != "" {
		s += "; " + fault
	} else {
		s += "; the event log replays"
	}
	switch {
	case b.Log == nil:
	case b.Log.SecureBoot != "":
		s += "; Secure Boot " + b.Log.SecureBoot
	default:
		s += "; Secure Boot unknown: " + b.Log.NoSecureBoot
	}
	return s
}
