package bootpolicy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// A reason builds the reason of a verdict from sentences. Those that do not fit are dropped.
type reason struct {
	b    strings.Builder
	full bool
}

const more = "; …"

func newReason(h list.Header) *reason {
	r := &reason{}
	if h.HasSerial {
		r.add("serial %d", h.Serial)
	}
	return r
}

// add adds a sentence, if there is room.
func (r *reason) add(format string, args ...any) {
	if r.full {
		return
	}
	sentence := fmt.Sprintf(format, args...)
	if r.b.Len() > 0 {
		sentence = "; " + sentence
	}
	if room := sources.MaxReason - len(more) - r.b.Len(); len(sentence) > room {
		if r.b.Len() == 0 { // the beginning is better than nothing
			r.b.WriteString(strings.ToValidUTF8(sentence[:room], ""))
		}
		sentence, r.full = more, true
	}
	r.b.WriteString(sentence)
}

func (r *reason) String() string { return r.b.String() }

// An unmet profile.
type unmet struct {
	name string
	// misses are the first conditions that are not met, and count is the number of all of them.
	misses []miss
	count  int
}

// maxMisses is the maximum number of misses that are kept for a profile until it is known which
// profile is the closest.
const maxMisses = 32

func newUnmet(p *bootprofiles.Profile, misses []miss) unmet {
	return unmet{p.Name, slices.Clip(misses[:min(len(misses), maxMisses)]), len(misses)}
}

// explain says why no profile is met, beginning with the closest profile: which of its conditions
// are not met, and then where the values of the PCRs come from.
func (j *judgement) explain(r *reason, all []unmet) {
	if len(all) == 0 {
		r.add("there are no profiles")
		return
	}
	slices.SortStableFunc(all, func(a, b unmet) int { return cmp.Compare(a.count, b.count) })
	r.add("meets no profile")
	told := map[int]bool{}
	for _, u := range all {
		var fresh []int
		for i, m := range u.misses {
			text := m.text
			switch {
			case m.pcr < 0:
			case told[m.pcr]:
				text = fmt.Sprintf("PCR %d likewise", m.pcr)
			default:
				told[m.pcr], fresh = true, append(fresh, m.pcr)
			}
			if i == 0 {
				text = fmt.Sprintf("%s: %s", u.name, text)
			}
			r.add("%s", text)
		}
		for _, pcr := range fresh {
			if r.full {
				return
			}
			j.explainPCR(r, pcr)
		}
		if r.full {
			return
		}
	}
}

// maxNamed is the maximum number of profiles with a value that are named, and of events if none of
// them is known to be new.
const maxNamed = 4

// explainPCR says where a PCR value that the profile does not have comes from: which other profiles
// have it, or else which events are new.
func (j *judgement) explainPCR(r *reason, pcr int) {
	value := j.boot.PCRs[pcr]
	known, knownTo := map[string]bool{}, []string(nil)
	for i := range j.profiles {
		p := &j.profiles[i]
		for _, v := range p.PCRs[pcr] {
			known[string(v)] = true
		}
		if len(knownTo) < maxNamed && contains(p.PCRs[pcr], value) {
			knownTo = append(knownTo, p.Name)
		}
	}
	switch log := j.boot.Log; {
	case len(knownTo) > 0:
		r.add("that value of PCR %d is known to %s", pcr, strings.Join(knownTo, ", "))
	case log == nil:
	case !log.Replays[pcr]:
		r.add("the event log does not explain PCR %d", pcr)
	default:
		j.explainEvents(r, pcr, known)
	}
}

// explainEvents names the events without which a PCR would have a known value, or else all of its
// events. The last event comes first, since what is booted last changes most often.
func (j *judgement) explainEvents(r *reason, pcr int, known map[string]bool) {
	var events []sources.BootEvent
	for _, e := range j.boot.Log.Events {
		if e.PCR == pcr {
			events = append(events, e)
		}
	}
	fresh := newest(j.boot, pcr, events, known)
	switch len(fresh) {
	case 0:
		r.add("PCR %d has %d events, the last first", pcr, len(events))
		fresh = slices.Clone(events[max(0, len(events)-maxNamed):])
		slices.Reverse(fresh)
	case 1:
		r.add("without this event PCR %d would have a known value, so it is new", pcr)
	default:
		r.add("without these %d events PCR %d would have a known value, so they are new", len(fresh), pcr)
	}
	for _, e := range fresh {
		if r.full {
			return
		}
		r.add("event %d (%s) %x", e.Number, e.What, e.Digest)
	}
}

// maxTried is the maximum number of a PCR's events for which leaving out each one is tried: the
// work grows with the square of the number, which the attesting machine chooses.
const maxTried = 64

// newest returns the events without which a PCR would have a known value: a single event, or the
// last events, as few as possible. It returns nil if there are no such events.
func newest(boot *sources.Boot, pcr int, events []sources.BootEvent, known map[string]bool) []sources.BootEvent {
	extend := extender(boot.Bank)
	if extend == nil {
		return nil
	}
	// before[i] is the value before event i.
	before := replay(boot, pcr, events, extend)
	if before == nil {
		return nil
	}
	if len(events) <= maxTried {
		for i, value := range slices.Backward(before) {
			for _, e := range events[i+1:] {
				value = extend(value, e.Digest)
			}
			if known[string(value)] {
				return events[i : i+1]
			}
		}
	}
	for i, value := range slices.Backward(before) {
		if known[string(value)] {
			return events[i:]
		}
	}
	return nil
}

// replay returns the value of a PCR before each event. It returns nil if the events do not lead to
// the quoted value. PCR 0 begins with the startup locality (TCG PC Client Platform Firmware Profile
// 1.06, 10.4.5.3), which is 0, 3 or 4 and is not in the evidence.
func replay(boot *sources.Boot, pcr int, events []sources.BootEvent, extend extendFunc) [][]byte {
	localities := []byte{0}
	if pcr == 0 {
		localities = []byte{0, 3, 4}
	}
	for _, locality := range localities {
		value := make([]byte, len(boot.PCRs[pcr]))
		if len(value) == 0 {
			return nil
		}
		value[len(value)-1] = locality
		before := make([][]byte, 0, len(events))
		for _, e := range events {
			before = append(before, value)
			value = extend(value, e.Digest)
		}
		if bytes.Equal(value, boot.PCRs[pcr]) {
			return before
		}
	}
	return nil
}

// An extendFunc returns the value of a PCR after an event (TPM 2.0 Library, part 1, 17.3).
type extendFunc func(value, digest []byte) []byte

func extender(bank string) extendFunc {
	switch bank {
	case "sha256":
		return func(value, digest []byte) []byte {
			sum := sha256.Sum256(slices.Concat(value, digest))
			return sum[:]
		}
	case "sha384":
		return func(value, digest []byte) []byte {
			sum := sha512.Sum384(slices.Concat(value, digest))
			return sum[:]
		}
	}
	return nil
}
