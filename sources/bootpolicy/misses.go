package bootpolicy

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// A miss is a condition of a profile that a boot does not meet.
type miss struct {
	// text describes it for people, without quoting the event log.
	text string
	// pcr is the PCR whose value is not in the profile; -1 for another condition.
	pcr int
}

// misses returns the conditions of a profile that the boot does not meet. The profile is met if
// there are none.
func (j *judgement) misses(p *bootprofiles.Profile) []miss {
	var all []miss
	note := func(format string, args ...any) { all = append(all, miss{fmt.Sprintf(format, args...), -1}) }
	if p.Expired(j.now) {
		note("it expired at %s", p.Expires.UTC().Format(time.RFC3339))
	}
	for _, pcr := range slices.Sorted(maps.Keys(p.PCRs)) {
		if value := j.boot.PCRs[pcr]; !contains(p.PCRs[pcr], value) {
			all = append(all, missPCR(pcr, value))
		}
	}
	if !p.NeedsLog() {
		return all
	}
	log := j.boot.Log
	if log == nil {
		note("there is no event log, which it needs: %s", j.boot.NoLog)
		return all
	}
	if s := p.SecureBoot; s != nil {
		if log.Replays[bootprofiles.PCRSecureBoot] {
			missSecureBoot(log, s, note)
		} else {
			note("the event log does not lead to the quoted PCR %d", bootprofiles.PCRSecureBoot)
		}
	}
	if len(p.Images) > 0 {
		if log.Replays[bootprofiles.PCRImages] {
			missOnly(log.Images, p.Images, "image", j.imageEvent, note)
		} else {
			note("the event log does not lead to the quoted PCR %d", bootprofiles.PCRImages)
		}
	}
	return all
}

func missPCR(pcr int, value []byte) miss {
	return miss{fmt.Sprintf("PCR %d has the value %x", pcr, value), pcr}
}

// missSecureBoot notes the conditions for Secure Boot that are not met. The log must replay to PCR
// 7.
func missSecureBoot(log *sources.BootLog, s *bootprofiles.SecureBoot, note func(string, ...any)) {
	if s.Enabled != nil {
		want := "disabled"
		if *s.Enabled {
			want = "enabled"
		}
		switch log.SecureBoot {
		case want:
		case "":
			note("the event log does not prove that Secure Boot is %s: %s", want, log.NoSecureBoot)
		default:
			note("Secure Boot is %s", log.SecureBoot)
		}
	}
	anywhere := func([]byte) string { return "" }
	if len(s.DB) > 0 {
		missOnly(log.DB, s.DB, "certificate in db", anywhere, note)
	}
	if len(s.Authorities) > 0 {
		missOnly(log.Authorities, s.Authorities, "authority", anywhere, note)
	}
	if len(s.DBX) == 0 {
		return
	}
	there := setOf(log.DBX.Digests)
	for _, digest := range s.DBX {
		if !there[string(digest)] {
			note("dbx does not have %x%s", digest, behind(log.DBX.Partial))
			break
		}
	}
}

// maxNew is the maximum number of new digests of one kind that are reported.
const maxNew = 8

// missOnly notes what a log proves beyond what is allowed. What cannot be verified may be anything.
// A log without any such events proves nothing: firmware that does not measure, or does not verify,
// writes none.
func missOnly(
	there sources.Measured, only [][]byte, what string, event func([]byte) string, note func(string, ...any),
) {
	known := setOf(only)
	told := 0
	for _, digest := range there.Digests {
		if known[string(digest)] {
			continue
		}
		if told++; told > maxNew {
			break
		}
		note("the %s %x is new%s", what, digest, event(digest))
	}
	switch {
	case there.Partial != "":
		note("not every %s can be verified: %s", what, there.Partial)
	case len(there.Digests) == 0:
		note("the event log has no %s", what)
	}
}

// imageEvent names the event of the log that has an image's digest.
func (j *judgement) imageEvent(digest []byte) string {
	for i := range j.boot.Log.Events {
		if e := &j.boot.Log.Events[i]; e.PCR == bootprofiles.PCRImages && bytes.Equal(e.Digest, digest) {
			return fmt.Sprintf(" (event %d, %s)", e.Number, e.What)
		}
	}
	return ""
}

// behind returns a remark in parentheses, to follow a sentence, if there is one.
func behind(remark string) string {
	if remark == "" {
		return ""
	}
	return " (" + remark + ")"
}

// setOf returns a set of digests. A machine chooses how many digests are in its log, so a linear
// search for each condition could take long.
func setOf(digests [][]byte) map[string]bool {
	set := make(map[string]bool, len(digests))
	for _, digest := range digests {
		set[string(digest)] = true
	}
	return set
}

func contains(digests [][]byte, digest []byte) bool {
	return slices.ContainsFunc(digests, func(d []byte) bool { return bytes.Equal(d, digest) })
}
