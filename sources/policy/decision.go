package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Outcome is the outcome of a decision. The zero Outcome refuses.
type Outcome int

// The outcomes of a decision.
const (
	// Refused: no answer that is still missing could admit the TPM. A deny rule holds, or no allow
	// rule can hold.
	Refused Outcome = iota
	// Unavailable: a source could not tell, and its answer would have mattered.
	Unavailable
	// Challenge: the machine is to be challenged. Only Plan.Before has this outcome.
	Challenge
	// Admitted: the machine is admitted. Only Plan.After has this outcome.
	Admitted
)

// String returns "refused", "unavailable", "challenge" or "admitted".
func (o Outcome) String() string {
	switch o {
	case Refused:
		return "refused"
	case Unavailable:
		return "unavailable"
	case Challenge:
		return "challenge"
	case Admitted:
		return "admitted"
	}
	return fmt.Sprintf("Outcome(%d)", int(o))
}

// Answer is the answer of one source.
type Answer struct {
	// Source is the source's configured name.
	Source string
	// Verdict is zero if Err is not nil. It shares no memory with the source.
	Verdict sources.Verdict
	// Err says why the source cannot tell. It wraps sources.ErrNeedsChallenge if the source needs
	// the challenge, and sources.ErrNeedsNetwork if the source needs the network but was not told
	// to use it, because the machine has not been challenged yet or because the answer would not
	// have mattered.
	Err error
	// Duration is how long the source took, including the wait for a slot.
	Duration time.Duration
}

// Result returns "listed", "not_listed", "cannot_tell", "needs_challenge" or
// "needs_network".
func (a Answer) Result() string {
	switch a.value() {
	case yes:
		return "listed"
	case unsure:
		return "cannot_tell"
	case open:
		if errors.Is(a.Err, sources.ErrNeedsChallenge) {
			return "needs_challenge"
		}
		return "needs_network"
	}
	return "not_listed"
}

// String returns the answer for people: `inventory: listed (serial 42)`.
func (a Answer) String() string {
	switch {
	case a.value() == unsure:
		return a.Source + ": cannot tell: " + a.Err.Error()
	case a.value() == open && errors.Is(a.Err, sources.ErrNeedsChallenge):
		return a.Source + ": needs the challenge"
	case a.value() == open:
		return a.Source + ": " + a.Err.Error()
	}
	s := a.Source + ": not listed"
	if a.Verdict.Listed {
		s = a.Source + ": listed"
	}
	if a.Verdict.Reason != "" {
		s += " (" + a.Verdict.Reason + ")"
	}
	return s
}

// NeedsNetwork reports whether the source would have to use the network.
func (a Answer) NeedsNetwork() bool {
	return errors.Is(a.Err, sources.ErrNeedsNetwork)
}

func (a Answer) value() value {
	switch {
	case errors.Is(a.Err, sources.ErrNeedsChallenge), a.NeedsNetwork():
		return open
	case a.Err != nil:
		return unsure
	case a.Verdict.Listed:
		return yes
	}
	return no
}

// Decision is what was decided about one Evidence, and why.
type Decision struct {
	Outcome Outcome

	// Known is true if the outcome is Challenge and a source that an enforced allow rule names,
	// which can still hold, already lists the TPM. If Known is false, only open answers justify the
	// challenge, and the TPM may be anybody's.
	Known bool

	// Rules are the names of the enforced allow rules that hold, sorted;
	// empty unless Outcome is Admitted.
	Rules []string
	// Listed are the names of the sources of those rules that list the TPM,
	// sorted.
	Listed []string
	// Attributes are what the sources in Listed know about the TPM, in the order of Listed; for
	// silent sources, only Profiles.
	Attributes []sources.Attributes
	// Unsure are the names of the sources of those rules that could not tell, sorted, without
	// silent sources. What they know is missing from Attributes.
	Unsure []string
	// Missing are the names of all sources that might also contribute to Attributes if every source
	// could tell, sorted, without silent sources: those in Unsure and, for each enforced allow rule
	// that only might hold, the sources that list the TPM or could not tell. So it may contain a
	// source that lists the TPM, or a Fetcher that was not asked while another source has failed.
	// If no source has failed, Missing is empty.
	Missing []string

	// Denied are the enforced deny rules that hold. MaybeDenied are those that might hold,
	// since a source could not tell. Both are sorted.
	Denied, MaybeDenied []string
	// Trials are what the rules on trial would have done: allow rules first, each kind
	// sorted by name.
	Trials []Trial

	// Answers are the answers of every source that was asked, sorted by source. If
	// Plan.Before challenges, they have no attributes.
	Answers []Answer
}

// Trial is what one rule on trial would have done.
type Trial struct {
	// Rule is the rule's name.
	Rule string
	// Deny is true for a deny rule.
	Deny bool
	// Holds is true if the rule holds. If Unsure is true, that is not known, and Holds is
	// false.
	Holds, Unsure bool
}

// Explain returns the answers of all sources, in one line for a log.
func (d Decision) Explain() string {
	s := make([]string, len(d.Answers))
	for i, a := range d.Answers {
		s[i] = a.String()
	}
	return strings.Join(s, "; ")
}
