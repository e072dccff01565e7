package evict

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
)

// The events. Their names are in the JSON output.
const (
	eventEvicted    = "evicted"
	eventWouldEvict = "would_evict"
	eventGone       = "gone" // another evicter or an operator was faster, or the agent attests anew
	eventAlarm      = "alarm"
	eventAlarmOver  = "alarm_over"
	eventFollows    = "follows"
	eventPass       = "pass"
)

// An event is one line of output.
type event struct {
	Version  int       `json:"version"`
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	SPIFFEID string    `json:"spiffe_id,omitempty"`
	EKHash   string    `json:"ek_hash,omitempty"`
	Name     string    `json:"name,omitempty"` // of the machine
	Alarm    string    `json:"alarm,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	*counts
}

// counts are the results of one look at all agents.
type counts struct {
	Agents     int `json:"agents"`      // that have a valid SVID
	Unknown    int `json:"unknown"`     // whose EK hash SPIRE does not say
	CannotTell int `json:"cannot_tell"` // about which a source that matters could not tell
	Refused    int `json:"refused"`     // that the configuration refuses
	Evicted    int `json:"evicted"`     // since the process was started
}

// text returns the event as a line for people.
func (e *event) text() string {
	switch e.Event {
	case eventAlarm:
		return "ALARM " + e.Alarm + ": " + e.Reason
	case eventAlarmOver:
		return "alarm " + e.Alarm + " is over"
	case eventFollows:
		return e.Reason
	case eventPass:
		c := e.counts
		return fmt.Sprintf("agents: %d, refused: %d, evicted: %d, cannot tell: %d, of an unknown machine: %d",
			c.Agents, c.Refused, c.Evicted, c.CannotTell, c.Unknown)
	}
	what := map[string]string{eventEvicted: "evicted", eventWouldEvict: "would evict", eventGone: "gone already"}
	name := ""
	if e.Name != "" {
		name = e.Name + ", "
	}
	return fmt.Sprintf("%s %s (%sEK %s): %s", what[e.Event], e.SPIFFEID, name, e.EKHash, e.Reason)
}

// maxReason is how many bytes of a reason are printed.
const maxReason = 1000

// A reporter prints events, and remembers which alarms are on.
type reporter struct {
	out    io.Writer
	format cli.Format
	now    func() time.Time
	alarms map[string]alarm
	err    error // why a line could not be printed: the command must then fail
}

// An alarm says why machines that should be evicted may still be in.
type alarm struct {
	reason string
	said   time.Time
}

// The alarms.
const (
	alarmBrake         = "brake"         // too many would go at once
	alarmConfiguration = "configuration" // a server would refuse the file, or it is another server's
	alarmSPIRE         = "spire"         // SPIRE does not answer
	alarmSources       = "sources"       // a source that matters cannot tell
	alarmReadmitted    = "readmitted"    // the server admits machines that this configuration refuses
)

// alarmNames returns all alarms.
func alarmNames() []string {
	return []string{alarmBrake, alarmConfiguration, alarmReadmitted, alarmSources, alarmSPIRE}
}

// print prints an event.
func (r *reporter) print(e *event) {
	e.Version, e.Time = 1, r.now().UTC().Truncate(time.Millisecond)
	e.Reason = strings.ToValidUTF8(e.Reason[:min(len(e.Reason), maxReason)], "")
	line := []byte(e.text())
	if r.format == cli.JSON {
		var b strings.Builder
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(e); err != nil {
			r.err = err
			return
		}
		line = []byte(strings.TrimSuffix(b.String(), "\n"))
	} else {
		line = []byte(strings.Map(printable, string(line)))
	}
	if _, err := r.out.Write(append(line, '\n')); err != nil {
		r.err = err
	}
}

// printable replaces line breaks and control characters: reasons quote what others have written.
func printable(c rune) rune {
	if !unicode.IsPrint(c) {
		return ' '
	}
	return c
}

// repeatAfter is how often an alarm that stays on is printed again.
const repeatAfter = 10 * time.Minute

// raise sets an alarm with a reason, or ends it if reason is empty. It prints when an alarm begins and
// ends, and every repeatAfter in between.
func (r *reporter) raise(name, reason string) {
	before, on := r.alarms[name]
	now := r.now()
	switch {
	case reason == "" && on:
		delete(r.alarms, name)
		r.print(&event{Event: eventAlarmOver, Alarm: name})
	case reason == "":
	case !on || now.Sub(before.said) >= repeatAfter:
		r.alarms[name] = alarm{reason, now}
		r.print(&event{Event: eventAlarm, Alarm: name, Reason: reason})
	default:
		r.alarms[name] = alarm{reason, before.said}
	}
}
