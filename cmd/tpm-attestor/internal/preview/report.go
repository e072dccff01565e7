package preview

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// The values of Report.Decision.
const (
	Admitted    = "admitted"
	Refused     = "refused"     // Report.Agent says whether the agent tries again
	Unavailable = "unavailable" // the agent tries again
	Depends     = "depends"     // on something that is not known here
)

// A Report is the JSON output of check.
type Report struct {
	Version int       `json:"version"`
	AsOf    time.Time `json:"as_of"`
	Network bool      `json:"network"` // whether the network was asked
	EK      ekReport  `json:"ek"`
	// Name is what lists call the machine.
	Name     string `json:"name,omitempty"`
	Decision string `json:"decision"`
	// Outcome is the outcome in the server's log and metrics; empty if Decision is Depends.
	Outcome   string   `json:"outcome,omitempty"`
	SPIFFEID  string   `json:"spiffe_id,omitempty"`
	Selectors []string `json:"selectors"`
	// Agent is what the agent is told; absent if the machine is admitted or Decision is Depends.
	Agent *agentAnswer `json:"agent,omitempty"`
	// Cause is the first reason why the machine is not admitted.
	Cause string `json:"cause,omitempty"`
	// Changes are the smallest changes that would admit the machine. Each is enough by itself.
	Changes []remedy       `json:"changes"`
	Sources []sourceReport `json:"sources"`
	Rules   []ruleReport   `json:"rules"`
	Notes   []string       `json:"notes"`
}

type ekReport struct {
	Hash        string `json:"hash"`
	From        string `json:"from,omitempty"`
	KeyType     string `json:"key_type,omitempty"`
	Certificate bool   `json:"certificate"`
}

type agentAnswer struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Retries bool   `json:"retries"`
}

// A remedy admits the machine if somebody takes all its steps and all its conditions hold.
type remedy struct {
	Steps []step `json:"steps"`
	If    []step `json:"if"`
}

// A step is an answer that a source would have to give. How says what to do for that.
type step struct {
	Source string `json:"source"`
	Answer string `json:"answer"`
	How    string `json:"how"`
}

type sourceReport struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	// Result is listed, not_listed, cannot_tell, needs_challenge or needs_network.
	Result  string     `json:"result"`
	Reason  string     `json:"reason,omitempty"`
	Place   string     `json:"place,omitempty"`
	Entries int        `json:"entries,omitempty"`
	Serial  uint64     `json:"serial,omitempty"`
	Loaded  *time.Time `json:"loaded,omitempty"`
	// Confirmed is when the data was last known to be current. Stale is when the source stops serving
	// it unless it is confirmed again. Expires is when the list itself expires.
	Confirmed *time.Time `json:"confirmed,omitempty"`
	Stale     *time.Time `json:"stale,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`
	Problem   string     `json:"problem,omitempty"`
	Warnings  []string   `json:"warnings"`
}

type ruleReport struct {
	Name   string       `json:"name"`
	Effect string       `json:"effect"` // allow or deny
	Trial  bool         `json:"trial"`
	Result string       `json:"result"` // holds, holds_not, might_hold or open
	All    []ruleSource `json:"all,omitempty"`
	Any    []ruleSource `json:"any,omitempty"`
}

type ruleSource struct {
	Source string `json:"source"`
	Result string `json:"result"`
}

// NewReport describes a preview of a server with the configuration c. network says whether the network was asked.
func NewReport(c *config.Config, s *Subject, p *server.Preview, network bool) *Report {
	r := &Report{
		Version: 1, AsOf: time.Now().UTC().Truncate(time.Second), Network: network,
		EK: ekReport{
			Hash: s.Evidence.EKHash.String(), From: s.from, KeyType: s.keyType,
			Certificate: s.Evidence.Certificate != nil,
		},
		Selectors: []string{}, Changes: []remedy{}, Notes: []string{},
	}
	w := wording{config: c, subject: s, preview: p, answers: map[string]policy.Answer{}}
	for i, a := range p.Answers {
		w.answers[a.Source] = a
		r.Sources = append(r.Sources, w.source(a, p.Status[i]))
		if name := a.Verdict.Attributes.Name; name != "" && !strings.Contains(","+r.Name+",", ","+name+",") {
			r.Name = strings.Trim(r.Name+","+name, ",")
		}
	}
	for _, h := range p.Rules {
		r.Rules = append(r.Rules, w.rule(h))
	}
	r.decide(&w)
	r.Notes = append(r.Notes, w.notes(r)...)
	return r
}

// decide fills in the decision, its cause, and what would change it.
func (r *Report) decide(w *wording) {
	p := w.preview
	switch result := p.Result; {
	case !p.Settled:
		r.Decision = Depends
	case result.Code == codes.OK:
		r.Decision, r.Outcome = Admitted, result.Outcome
		r.SPIFFEID, r.Selectors = result.SPIFFEID, result.Selectors
		return
	default:
		// SPIRE's agent gives up on PermissionDenied alone.
		retries := result.Code != codes.PermissionDenied
		r.Outcome, r.Agent = result.Outcome, &agentAnswer{result.Code.String(), result.Message, retries}
		r.Decision = Refused
		if result.Code == codes.Unavailable {
			r.Decision = Unavailable
		}
	}
	r.Cause = w.cause()
	if p.Settled && p.Decision.Outcome == policy.Admitted || r.Outcome == "malformed" {
		return // no source can change that
	}
	for _, way := range p.Ways {
		r.Changes = append(r.Changes, remedy{w.steps(way.Changes), w.steps(way.If)})
	}
}

func (w *wording) source(a policy.Answer, s admission.SourceStatus) sourceReport {
	m := w.member(a.Source)
	out := sourceReport{
		Name: a.Source, Kind: m.Kind, Result: a.Result(), Reason: a.Verdict.Reason, Place: placeOf(m.Config),
		Entries: s.Entries, Serial: s.Serial, Warnings: append([]string{}, s.Warnings...),
		Loaded: moment(s.Loaded), Confirmed: moment(s.Confirmed), Stale: moment(s.Stale), Expires: moment(s.Expires),
	}
	if a.Err != nil {
		out.Reason = w.why(a)
	}
	if s.Err != nil && !strings.Contains(out.Reason, s.Err.Error()) {
		out.Problem = s.Err.Error()
	}
	return out
}

func (w *wording) rule(h policy.Held) ruleReport {
	r := ruleReport{Name: h.Name, Effect: "allow", Trial: h.Trial, Result: h.Result}
	if h.Deny {
		r.Effect = "deny"
	}
	results := func(names []string) (all []ruleSource) {
		for _, name := range names {
			all = append(all, ruleSource{name, w.answers[name].Result()})
		}
		return all
	}
	r.All, r.Any = results(h.All), results(h.Any)
	return r
}

func (w *wording) steps(changes []policy.Change) []step {
	all := []step{}
	for _, c := range changes {
		answer := "not_listed"
		if c.Listed {
			answer = "listed"
		}
		all = append(all, step{c.Source, answer, w.how(c)})
	}
	return all
}

// notes returns what the report cannot know.
func (w *wording) notes(r *Report) (all []string) {
	if w.subject.others > 0 {
		all = append(all, fmt.Sprintf("%s holds %d EKs: this is about the first", w.subject.from, w.subject.others+1))
	}
	if len(w.preview.Incomplete) > 0 && r.Decision == Admitted {
		open := strings.Join(w.preview.Incomplete, ", ")
		all = append(all, "the selectors may be more: those of "+open+" are not known here")
	}
	if w.config.Quote != nil && r.Decision == Admitted && len(w.config.Quote.Selectors) > 0 {
		all = append(all, "the selectors may be more: those of the machine's PCRs are not known here")
	}
	if r.Decision == Admitted && !w.config.Reattest {
		all = append(all, "reattest = false: a machine that has attested before is refused, which only SPIRE knows")
	}
	if r.Decision == Admitted && w.subject.Evidence.EK == nil && !w.config.AllowWeakEK {
		all = append(all, "whether the EK is weak (CVE-2017-15361) is seen only in the key, not in its hash")
	}
	return all
}

func (w *wording) member(name string) admission.Member {
	i := slices.IndexFunc(w.config.Members, func(m admission.Member) bool { return m.Name == name })
	return w.config.Members[i]
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}
