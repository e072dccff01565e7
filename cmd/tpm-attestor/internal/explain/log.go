package explain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/preview"
)

// The messages of the lines that are explained.
const (
	admittedMessage = "Machine admitted"
	failedMessage   = "Attestation failed"
	svidMessage     = "SVID refused" // of the credential composer
)

// An explanation says in plain words what a line of a log means.
type explanation struct {
	Line int `json:"line"`
	// Time is the time in the line, in the line's own format.
	Time string `json:"time,omitempty"`
	// Decision is admitted, refused or unavailable. Outcome is the outcome that the server's plugin
	// has logged; it is empty for other lines.
	Decision string `json:"decision"`
	Outcome  string `json:"outcome,omitempty"`
	What     string `json:"what"`
	Cause    string `json:"cause,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
	EKHash   string `json:"ek_hash,omitempty"`
	Name     string `json:"name,omitempty"`
	Peer     string `json:"peer,omitempty"`
	SPIFFEID string `json:"spiffe_id,omitempty"`
	Rules    string `json:"rules,omitempty"`
	Boot     string `json:"boot,omitempty"`
	Trials   string `json:"trials,omitempty"`

	Sources []answer `json:"sources,omitempty"`

	fromSPIRE bool // SPIRE Server has logged the line, not the plugin
}

// withoutRepeats leaves out a line that SPIRE Server itself has logged if the plugin's nearest line before or after
// it has the same decision: the plugin's line says more. Without such a line, SPIRE's line stays.
func withoutRepeats(all []explanation) []explanation {
	next := make([]string, len(all)+1) // the decision of the first line of the plugin from here on
	for i := len(all) - 1; i >= 0; i-- {
		if next[i] = next[i+1]; all[i].Outcome != "" {
			next[i] = all[i].Decision
		}
	}
	kept, last := []explanation{}, ""
	for i := range all {
		if all[i].Outcome != "" {
			last = all[i].Decision
		}
		if d := all[i].Decision; !all[i].fromSPIRE || d != last && d != next[i] {
			kept = append(kept, all[i])
		}
	}
	return kept
}

type answer struct {
	Source string `json:"source"`
	Result string `json:"result"`
	Reason string `json:"reason,omitempty"`
}

// explainLine explains a line. It returns false if the line is not about an attestation.
func explainLine(line string) (explanation, bool) {
	f := fieldsOf(line)
	message := f["message"]
	if message == "" {
		message = line
	}
	switch {
	case strings.Contains(message, admittedMessage):
		f["outcome"] = preview.Admitted
	case strings.Contains(message, failedMessage) && f["outcome"] != "":
	case strings.Contains(message, svidMessage) && f["spiffe_id"] != "":
		return explanation{
			Decision: svidRefused.decision, What: svidRefused.what, Cause: f["reason"], Remedy: svidRefused.remedy,
			SPIFFEID: f["spiffe_id"],
		}, true
	default:
		return explainAgent(line)
	}
	l := explanation{
		Time: timeOf(f), Outcome: f["outcome"],
		EKHash: f["ek_hash"], Name: f["name"], Peer: f["peer"], SPIFFEID: f["spiffe_id"],
		Rules: f["rules"], Boot: f["boot"], Trials: f["trials"], Sources: sourcesOf(f["sources"]),
	}
	o, known := outcomesInWords[l.Outcome]
	if !known {
		o = inWords{
			preview.Unavailable, "The attestation ended as " + l.Outcome + ".",
			"this version of tpm-attestor does not know that outcome: use the plugin's own version",
		}
	}
	l.Decision, l.What, l.Remedy, l.Cause = o.decision, o.what, o.remedy, f["reason"]
	l.because(f)
	return l, true
}

// timeOf returns the time of a line, which the plugin, SPIRE and hclog in JSON name differently.
func timeOf(f map[string]string) string { return cmp.Or(f["timestamp"], f["time"], f["@timestamp"]) }

// because fills in the cause and the remedy if the fields of the line say more about them than its outcome.
func (l *explanation) because(f map[string]string) {
	check := "tpm-attestor check CONFIG " + l.EKHash
	switch {
	case l.Outcome == preview.Admitted && f["unsure"] != "":
		l.Cause = "not everything is known: " + l.say(f["unsure"], "cannot_tell") + "; its selectors are missing"
		l.Remedy = "repair " + f["unsure"] + "; the machine gets its selectors when it attests again"
	case l.Outcome == preview.Refused && f["denied_by"] != "":
		l.Cause = fmt.Sprintf("the deny rule %s holds; of all sources, %s", f["denied_by"], l.say("", "listed"))
		l.Remedy = "if it should not be denied, take it off that list; " + check + " says which change is the smallest"
	case l.Outcome == preview.Refused && f["reason"] == "no allow rule holds":
		l.Cause = "no allow rule holds: " + l.say("", "not_listed")
		l.Remedy = "if it should be admitted, list it; " + check + " says which change is the smallest"
	case l.Outcome == preview.Refused && strings.HasPrefix(f["reason"], "svid_key is "):
		l.Remedy = `on the machine, use KeyManager "tpm", and its directory as svid_key_directory of NodeAttestor "tpm"`
	case l.Outcome == preview.Unavailable && strings.HasPrefix(f["reason"], "hand the key over "):
		l.Remedy = "have the credential composer answer, as the reason says; the machine needs nothing"
	case l.Outcome == preview.Unavailable && strings.Contains(l.Cause+" ", " cannot tell "),
		l.Outcome == preview.Unavailable && f["maybe_denied_by"] != "":
		l.Cause += ": " + l.say("", "cannot_tell")
	}
}

// say returns what the sources with this result say. names are the sources that count, separated by commas; if it
// is empty, all count.
func (l *explanation) say(names, result string) string {
	var all []string
	for _, s := range l.Sources {
		if s.Result != result || names != "" && !strings.Contains(","+names+",", ","+s.Source+",") {
			continue
		}
		text := s.Source + " "
		switch result {
		case "listed":
			text += "lists it"
		case "not_listed":
			text += "does not list it"
		default:
			text += preview.AnswerInWords(result)
		}
		if s.Reason != "" {
			text += " (" + s.Reason + ")"
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// inWords is what an outcome means.
type inWords struct{ decision, what, remedy string }

// outcomesInWords has all outcomes of the server's log.
var outcomesInWords = map[string]inWords{
	"admitted": {preview.Admitted, "The server admitted this machine.", ""},
	"refused": {
		preview.Refused, "The server's rules refused this machine. Its agent has given up.",
		"the reason names the setting that refused it",
	},
	"unavailable": {
		preview.Unavailable, "The server could not tell whether to admit this machine. Its agent tries again.",
		"repair what could not tell; the machine needs nothing",
	},
	"malformed": {
		preview.Refused, "What the agent sent breaks a rule of the protocol. Its agent tries again.",
		"update the agent's plugin; if the EK is weak, update the TPM's firmware and enrol a new EK",
	},
	"challenge_failed": {
		preview.Refused, "The machine did not prove that it holds the EK, or what it was asked to quote.",
		"is it one TPM? A cloned virtual machine whose TPM was created anew has a new EK: enrol that. " +
			"Otherwise update the agent's plugin",
	},
	"no_answer": {
		preview.Unavailable, "The machine did not answer its challenge within a minute. Its agent tries again.",
		"look whether other programs keep the TPM busy, and at the network between agent and server",
	},
	"agent_left": {
		preview.Unavailable, "The agent, or SPIRE, ended the attestation before it was decided.",
		"see the log of the agent for why it left",
	},
	"no_id": {
		preview.Refused, "The rules admit this machine, but agent_path_template forms no SPIFFE ID for it.",
		"give its entry one name, and the same one in all lists, or whatever else the template needs",
	},
	"second_use": {
		preview.Refused, "The machine has been admitted before, and reattest = false admits it once only.",
		"evict its agent in SPIRE; better, set reattest = true",
	},
	"internal": {
		preview.Unavailable, "The plugin has a defect, or the machine's EK cannot be challenged.",
		"please report the line",
	},
}

// svidRefused explains that the credential composer has refused an SVID.
var svidRefused = inWords{
	preview.Refused, "The server admitted this agent, and SPIRE was not allowed to sign the key that it asked for. " +
		"Its agent tries again.",
	`if the key is another one, use KeyManager "tpm" on the machine, and its directory as svid_key_directory of ` +
		`NodeAttestor "tpm"; if there is none, evict an agent that cannot re-attest, or set svid_key`,
}

// agentMessages are the messages that the server sends to agents, and what they mean.
var agentMessages = []struct {
	told string
	inWords
}{
	{"this TPM is not admitted", outcomesInWords["refused"]},
	{"the server cannot tell right now whether to admit this TPM", outcomesInWords["unavailable"]},
	{"the server cannot tell right now which SPIFFE ID", outcomesInWords["unavailable"]},
	{"whether this machine has been admitted before", outcomesInWords["unavailable"]},
	{"the server cannot give this agent an SVID right now", outcomesInWords["unavailable"]},
	{"no SVID for this agent", svidRefused},
	{"the server is busy", outcomesInWords["unavailable"]},
	{"the server cannot challenge this TPM", outcomesInWords["internal"]},
	{"the server admits only machines", outcomesInWords["refused"]},
	{"the server admits only agents", outcomesInWords["refused"]},
	{"in the answer to the challenge is", outcomesInWords["challenge_failed"]},
	{"the answer to the challenge is wrong", outcomesInWords["challenge_failed"]},
	{"the challenge was not answered within", outcomesInWords["no_answer"]},
	{"no SPIFFE ID can be formed for this machine", outcomesInWords["no_id"]},
	{"can only be admitted once", outcomesInWords["second_use"]},
	{"this machine is being admitted already", outcomesInWords["unavailable"]},
}

// explainAgent explains a line with a message that the server has sent to an agent.
func explainAgent(line string) (explanation, bool) {
	for _, m := range agentMessages {
		if strings.Contains(line, m.told) {
			f := fieldsOf(line)
			return explanation{
				fromSPIRE: f["method"] == "AttestAgent", Time: timeOf(f),
				Decision: m.decision, What: m.what,
				Cause: "agents are not told why: only the plugin's line in the server's log says it",
				Remedy: "find the line \"" + failedMessage + "\" of the same time in the server's log, or run " +
					"tpm-attestor check",
			}, true
		}
	}
	return explanation{}, false
}

// field matches a field of a line in text: name=word or name="quoted". Both logrus and hclog write
// fields in this way.
var field = regexp.MustCompile(`([A-Za-z_@][A-Za-z0-9_.@-]*)=("(?:[^"\\]|\\.)*"|[^\s"]*)`)

// fieldsOf returns the fields of a line in JSON or in text. The message is in "message", whatever the line calls
// that field.
func fieldsOf(line string) map[string]string {
	f := map[string]string{}
	var object map[string]any
	if at := strings.IndexByte(line, '{'); at >= 0 && json.Unmarshal([]byte(line[at:]), &object) == nil {
		for name, value := range object {
			f[name] = clean(fmt.Sprint(value))
		}
	} else {
		for _, m := range field.FindAllStringSubmatch(line, -1) {
			value, err := strconv.Unquote(m[2])
			if err != nil {
				value = m[2]
			}
			f[m[1]] = clean(value)
		}
	}
	for _, name := range []string{"@message", "msg"} {
		if f["message"] == "" {
			f["message"] = f[name]
		}
	}
	return f
}

// clean replaces the characters of a text that a terminal would obey.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// answered matches the beginning of a source's answer in the field sources.
var answered = regexp.MustCompile(
	`^([a-z0-9_-]+): (listed|not listed|cannot tell|needs the challenge|.*needs the network)`)

// sourcesOf parses the field sources. The answers are separated by semicolons, which may be in a reason as well.
func sourcesOf(text string) []answer {
	var all []answer
	for part := range strings.SplitSeq(text, "; ") {
		m := answered.FindStringSubmatch(part)
		if m == nil {
			if n := len(all); n > 0 {
				all[n-1].Reason += "; " + part
			}
			continue
		}
		s := answer{Source: m[1], Result: strings.ReplaceAll(m[2], " ", "_"), Reason: part[len(m[0]):]}
		switch {
		case m[2] == "needs the challenge":
			s.Result = "needs_challenge"
		case strings.HasSuffix(m[2], "needs the network"):
			s.Result, s.Reason = "needs_network", part[len(m[1])+2:]
		}
		s.Reason = strings.TrimPrefix(s.Reason, ": ")
		all = append(all, s)
	}
	for i := range all {
		if r, ok := strings.CutPrefix(all[i].Reason, " ("); ok {
			all[i].Reason = strings.TrimSuffix(r, ")")
		}
	}
	return all
}
