package preview

import (
	"fmt"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
)

// text is the output for people.
func (r *Report) text() string {
	var b strings.Builder
	r.writeEK(&b)
	r.writeDecision(&b)
	r.writeSources(&b)
	r.writeRules(&b)
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\nNote: %s\n", note)
	}
	return b.String()
}

func (r *Report) writeEK(b *strings.Builder) {
	fmt.Fprintf(b, "EK hash: %s", r.EK.Hash)
	var about []string
	switch {
	case r.EK.From == "tpm":
		about = append(about, "of this machine's TPM")
	case r.EK.From != "":
		about = append(about, "from "+r.EK.From)
	}
	if r.EK.KeyType != "" {
		about = append(about, r.EK.KeyType)
		if r.EK.Certificate {
			about = append(about, "with an EK certificate")
		} else {
			about = append(about, "without an EK certificate")
		}
	}
	if len(about) > 0 {
		fmt.Fprintf(b, "  (%s)", strings.Join(about, ", "))
	}
	b.WriteString("\n")
	if r.Name != "" {
		fmt.Fprintf(b, "Name: %s\n", r.Name)
	}
}

// decisions are the words for the values of Report.Decision.
var decisions = map[string]string{
	Admitted: "ADMITTED", Refused: "REFUSED",
	Unavailable: "CANNOT TELL", Depends: "DEPENDS",
}

func (r *Report) writeDecision(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s", decisions[r.Decision])
	if r.Cause != "" {
		fmt.Fprintf(b, ": %s", r.Cause)
	}
	b.WriteString("\n")
	if r.SPIFFEID != "" {
		fmt.Fprintf(b, "  SPIFFE ID: %s\n", r.SPIFFEID)
	}
	for _, s := range r.Selectors {
		fmt.Fprintf(b, "  selector:  tpm:%s\n", s)
	}
	if a := r.Agent; a != nil {
		then := "tries again"
		if !a.Retries {
			then = "gives up"
		}
		fmt.Fprintf(b, "  The agent gets %s, %q, and %s.\n", a.Code, a.Message, then)
	}
	r.writeChanges(b)
}

// mostChanges is how many changes are printed for people.
const mostChanges = 5

func (r *Report) writeChanges(b *strings.Builder) {
	for i, c := range r.Changes {
		if i == mostChanges {
			fmt.Fprintf(b, "  Or one of %d other ways; --output json has all.\n", len(r.Changes)-i)
			break
		}
		begin := "To admit it"
		if i > 0 {
			begin = "Or"
		}
		var steps, conditions []string
		for _, s := range c.Steps {
			steps = append(steps, s.How)
		}
		for _, s := range c.If {
			verb := "lists it"
			if s.Answer != "listed" {
				verb = "does not list it"
			}
			conditions = append(conditions, s.Source+" "+verb)
		}
		line := strings.Join(steps, ", and ")
		if len(conditions) > 0 {
			line = strings.TrimSpace(line + " if " + strings.Join(conditions, " and "))
		}
		if len(steps) == 0 {
			begin, line = "It is admitted", "if "+strings.Join(conditions, " and ")
			fmt.Fprintf(b, "  %s %s.\n", begin, line)
			continue
		}
		fmt.Fprintf(b, "  %s: %s.\n", begin, line)
	}
}

// answerWords are the words for the result of a source.
var answerWords = map[string]string{
	"listed": "listed", "not_listed": "not listed", "cannot_tell": "cannot tell",
	"needs_challenge": "not known", "needs_network": "not known",
}

// AnswerInWords returns the words for a source's result, as it is in the JSON output.
func AnswerInWords(result string) string { return answerWords[result] }

func (r *Report) writeSources(b *strings.Builder) {
	offline := ", without the network"
	if r.Network {
		offline = ""
	}
	fmt.Fprintf(b, "\nSources, as of %s%s\n", r.AsOf.Format(time.RFC3339), offline)
	for _, s := range r.Sources {
		fmt.Fprintf(b, "  %-16s %-11s %s", s.Name, s.Kind, answerWords[s.Result])
		if s.Reason != "" {
			fmt.Fprintf(b, ": %s", s.Reason)
		}
		fmt.Fprintf(b, "\n  %16s %s\n", "", strings.Join(r.state(&s), "; "))
		for _, w := range s.Warnings {
			fmt.Fprintf(b, "  %16s warning: %s\n", "", w)
		}
	}
}

// state describes a source's data: where it is, how much it is, and how current.
func (r *Report) state(s *sourceReport) []string {
	all := []string{s.Place}
	if s.Entries > 0 || s.Loaded != nil {
		all = append(all, cli.Entries(s.Entries))
	}
	if s.Serial > 0 {
		all = append(all, fmt.Sprintf("serial %d", s.Serial))
	}
	if s.Confirmed != nil {
		all = append(all, fmt.Sprintf("confirmed %v ago", r.AsOf.Sub(*s.Confirmed)))
	}
	if s.Stale != nil {
		all = append(all, "serves until "+s.Stale.Format(time.RFC3339)+" if it is not confirmed again")
	}
	if s.Expires != nil {
		all = append(all, "expires "+s.Expires.Format(time.RFC3339))
	}
	if s.Problem != "" {
		all = append(all, "problem: "+s.Problem)
	}
	return all
}

// ruleWords are the words for the result of an enforced rule, and trialWords those for a rule on trial.
var (
	ruleWords = map[string]string{
		"holds": "holds", "holds_not": "does not hold", "might_hold": "might hold: a source cannot tell",
		"open": "not known here",
	}
	trialWords = map[string]string{
		"holds": "would hold", "holds_not": "would not hold", "might_hold": "might hold: a source cannot tell",
		"open": "not known here",
	}
)

func (r *Report) writeRules(b *strings.Builder) {
	b.WriteString("\nRules\n")
	trials := false
	for _, rule := range r.Rules {
		if trials = trials || rule.Trial; !rule.Trial {
			rule.write(b, ruleWords)
		}
	}
	if !trials {
		return
	}
	b.WriteString("\nOn trial, deciding nothing\n")
	for _, rule := range r.Rules {
		if rule.Trial {
			rule.write(b, trialWords)
		}
	}
}

func (r *ruleReport) write(b *strings.Builder, words map[string]string) {
	fmt.Fprintf(b, "  %s %q: %s\n", r.Effect, r.Name, words[r.Result])
	for _, part := range []struct {
		name    string
		sources []ruleSource
	}{{"all of", r.All}, {"any of", r.Any}} {
		if len(part.sources) > 0 {
			fmt.Fprintf(b, "    %s\n", part.name)
		}
		for _, s := range part.sources {
			fmt.Fprintf(b, "      %-14s %s\n", s.Source, answerWords[s.Result])
		}
	}
}
