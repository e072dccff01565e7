package evict

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// The times of the evicter. A removed machine is out within ten seconds: these times, and the five
// seconds after which an agent notices that it was evicted.
const (
	// interval is the time from one pass to the next. A pass takes at most one part in
	// passShare of the time, so that a large fleet leaves SPIRE and databases room.
	interval, passShare = 2 * time.Second, 3
	// confirmAfter is how long a machine has to be refused before it is evicted: by then, a list
	// that is written in place is whole.
	confirmAfter = 1500 * time.Millisecond
	// screenTimeout is how long a pass may ask the sources, and refreshTimeout how long they
	// may take to load anew.
	screenTimeout, refreshTimeout = 30 * time.Second, 40 * time.Second
	// unconfirmedFor is how long a server may take to confirm a list before there is an alarm.
	unconfirmedFor = 2 * time.Minute
	// workers is how many machines are asked about at once.
	workers = 16
	// A machine that the server admits again after its eviction is evicted again only after
	// leastReturn, which doubles each time up to mostReturn.
	leastReturn, mostReturn = 10 * time.Second, time.Hour
)

// An evicter evicts the agents that a site's configuration refuses. One goroutine uses it.
type evicter struct {
	options
	spire  *spire
	site   *site
	report *reporter
	brake  *brake
	now    func() time.Time
	// interval, confirmAfter and unconfirmedFor are the constants; tests have others.
	interval, confirmAfter, unconfirmedFor time.Duration

	unread   error               // why the configuration in the file is not followed
	seen     map[string]*agent   // the agents at the last look, by SPIFFE ID; nil before the first look
	suspects map[string]*suspect // by SPIFFE ID
	returns  map[sources.EKHash]*returned
	counts   counts
	looked   time.Time // when the last whole pass has ended
	took     time.Duration
	// unwritten is why the status could not be written the last time, or empty.
	unwritten string
}

// A suspect is an agent that the configuration refuses.
type suspect struct {
	*agent
	since  time.Time // when it was first seen to be refused
	told   bool      // a dry run has said that it would be evicted
	reason string
}

// returned is a machine that was evicted and that this configuration has not admitted since.
type returned struct {
	times int       // how often it was evicted
	last  time.Time // when it was last evicted
}

// quiet is how long after its last eviction the machine is left alone.
func (r *returned) quiet() time.Duration { return min(leastReturn<<min(r.times-1, 20), mostReturn) }

// pass looks at all agents once and evicts those that are to be evicted now. It returns when the
// next pass is due.
func (e *evicter) pass(ctx context.Context) (wait time.Duration) {
	begun := e.now()
	problems, err := e.look(ctx)
	if ctx.Err() != nil { // what is interrupted has not failed
		return 0
	}
	if err != nil {
		e.report.raise(alarmSPIRE, err.Error())
		return e.interval
	}
	for _, name := range alarmNames() {
		e.report.raise(name, problems[name])
	}
	e.looked, e.took = e.now(), e.now().Sub(begun)
	wait = max(e.interval, (passShare-1)*e.took)
	for _, s := range e.suspects {
		if age := e.now().Sub(s.since); age < e.confirmAfter {
			wait = min(wait, e.confirmAfter-age)
		}
	}
	return wait
}

// look does the work of pass. It returns the reason of each alarm that is on. If there is an error, SPIRE
// has not said which agents there are.
func (e *evicter) look(ctx context.Context) (problems map[string]string, err error) {
	agents, err := e.spire.list(ctx)
	if err != nil {
		return nil, err
	}
	e.sight(agents)
	problems = map[string]string{}
	if e.unread != nil {
		problems[alarmConfiguration] = e.unread.Error()
	}
	if foreign := e.foreign(agents); foreign != "" {
		problems[alarmConfiguration] = foreign
		return problems, nil
	}
	problems[alarmSources] = e.screen(ctx, agents)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	problems[alarmReadmitted] = e.readmitted()
	if problems[alarmBrake] = e.braked(agents); problems[alarmBrake] != "" {
		if e.dryRun {
			e.tell(e.due()...)
		}
		return problems, nil
	}
	e.evict(ctx, e.due(), problems)
	return problems, nil
}

// sight notes which agents have attested since the last look. Those of the first look may have attested just
// before, which SPIRE does not say. With --once, they count as having attested long ago: a single look does
// not wait until the server has polled again.
func (e *evicter) sight(agents []*agent) {
	seen := make(map[string]*agent, len(agents))
	for _, a := range agents {
		switch old := e.seen[a.name]; {
		case old != nil && old.serial == a.serial:
			a.attested = old.attested
		case e.seen != nil || !e.options.once:
			a.attested = time.Now() // by the clock of the sources
		}
		seen[a.name] = a
	}
	e.seen = seen
}

// foreign returns why the configuration is another server's, or nothing: its trust domain is not
// that of the agents.
func (e *evicter) foreign(agents []*agent) string {
	own := e.site.trustDomain
	if own.IsZero() {
		return ""
	}
	for _, a := range agents {
		if a.id.TrustDomain != own.Name() {
			return fmt.Sprintf("the configuration is of the trust domain %q, and the SPIRE server at %s of %q: "+
				"nobody is evicted by the configuration of another server", own.Name(), e.socket, a.id.TrustDomain)
		}
	}
	return ""
}

// A screened agent is an agent with the decision about it by Previewer.Screen.
type screened struct {
	*agent
	decision policy.Decision
}

// screen asks the sources about all agents, in any order, and notes which of them are refused. It
// returns why the sources cannot tell about some agents, or nothing.
func (e *evicter) screen(ctx context.Context, agents []*agent) (problem string) {
	within, cancel := context.WithTimeout(ctx, screenTimeout)
	defer cancel()
	status := e.site.previewer.Status()
	todo, done := make(chan *agent), make(chan screened)
	var asking sync.WaitGroup
	for range workers {
		asking.Go(func() {
			for a := range todo {
				done <- screened{a, e.site.previewer.Screen(within, a.evidence())}
			}
		})
	}
	go func() {
		for _, i := range rand.Perm(len(agents)) { //nolint:gosec // G404: nobody gains by knowing the order
			if !agents[i].unknown {
				todo <- agents[i]
			}
		}
		close(todo)
		asking.Wait()
		close(done)
	}()
	e.counts = counts{Agents: len(agents), Evicted: e.counts.Evicted}
	var refused []screened
	for s := range done {
		switch s.decision.Outcome {
		case policy.Refused:
			e.counts.Refused++
			refused = append(refused, s)
		case policy.Unavailable:
			e.counts.CannotTell++
			problem = s.decision.Explain()
		default:
			delete(e.returns, s.hash) // this configuration admits it, as the server does
		}
	}
	for _, a := range agents {
		if a.unknown {
			e.counts.Unknown++
		}
	}
	if waiting := e.suspectAll(within, refused, status); waiting != "" {
		problem = waiting
	}
	if e.counts.CannotTell == 0 {
		return ""
	}
	why := []string{fmt.Sprintf("%d of %d agents cannot be judged, and stay; of one of them, %s",
		e.counts.CannotTell, len(agents), problem)}
	for _, s := range e.site.previewer.Status() {
		if s.Err != nil {
			why = append(why, fmt.Sprintf("source %s: %v", s.Name, s.Err))
		}
	}
	return strings.Join(why, "; ")
}

// suspectAll notes which of the refused agents are suspects. An agent that has attested after the server
// last confirmed a list is not a suspect: another server, with a later list, may have admitted it. If
// the server does not confirm the list within unconfirmedFor, suspectAll returns that as the problem.
func (e *evicter) suspectAll(
	ctx context.Context, refused []screened, status []admission.SourceStatus,
) (problem string) {
	suspects := map[string]*suspect{}
	later := slices.DeleteFunc(refused, func(s screened) bool {
		if !e.site.previewer.RefusedSince(s.decision.Answers, status, s.attested) {
			return false
		}
		suspects[s.name] = e.suspect(s)
		return true
	})
	if len(later) > 0 && e.site.previewer.Refresh(ctx) == nil {
		status = e.site.previewer.Status()
	}
	for _, s := range later {
		s.decision = e.site.previewer.Screen(ctx, s.evidence())
		switch {
		case s.decision.Outcome != policy.Refused:
			e.counts.Refused--
		case e.site.previewer.RefusedSince(s.decision.Answers, status, s.attested):
			suspects[s.name] = e.suspect(s)
		case time.Since(s.attested) > e.unconfirmedFor:
			e.counts.CannotTell++
			e.counts.Refused--
			problem = "a list was not confirmed since it has attested: " + s.decision.Explain()
		}
	}
	e.suspects = suspects
	return problem
}

// evidence returns what SPIRE keeps about a machine: its EK hash.
func (a *agent) evidence() *sources.Evidence {
	return &sources.Evidence{EKHash: a.hash, Incomplete: true}
}

// suspect returns the suspect for an agent that is refused. An agent that has attested again since it
// became a suspect is a new suspect.
func (e *evicter) suspect(s screened) *suspect {
	if old := e.suspects[s.name]; old != nil && old.hash == s.hash && old.serial == s.serial {
		old.agent = s.agent
		return old
	}
	return &suspect{agent: s.agent, since: e.now(), reason: s.decision.Explain()}
}

// readmitted returns the problem that the server admits a machine again and again which this
// configuration refuses, or nothing.
func (e *evicter) readmitted() string {
	for _, s := range e.suspects {
		if r := e.returns[s.hash]; r != nil && r.times > 1 {
			return fmt.Sprintf("the server has admitted %s again after each of its %d evictions, so it does not "+
				"follow this configuration or these lists: was it told to read its configuration again (SIGUSR1), and "+
				"do all servers of its database have the same rules and lists?", s.name, r.times)
		}
	}
	return ""
}

// braked returns why nobody may be evicted, or nothing.
func (e *evicter) braked(agents []*agent) string {
	suspected := func(a *agent) bool { return e.suspects[a.name] != nil }
	why := e.brake.holds(agents, len(e.suspects), suspected, e.now())
	if why == "" || e.force {
		return ""
	}
	return why + ": nobody is evicted; see who it is with --once --dry-run, and if that is meant, evict them with " +
		"--once --force"
}

// due returns the suspects that are to be evicted now, sorted by SPIFFE ID.
func (e *evicter) due() (due []*suspect) {
	for hash, r := range e.returns {
		if e.now().Sub(r.last) > 2*mostReturn { //nolint:mnd // after any quiet
			delete(e.returns, hash)
		}
	}
	for _, s := range e.suspects {
		r := e.returns[s.hash]
		if e.now().Sub(s.since) >= e.confirmAfter && (r == nil || e.now().Sub(r.last) >= r.quiet()) {
			due = append(due, s)
		}
	}
	slices.SortFunc(due, func(a, b *suspect) int { return cmp.Compare(a.name, b.name) })
	return due
}

// tell says who would be evicted.
func (e *evicter) tell(due ...*suspect) {
	for _, s := range due {
		if !s.told {
			s.told = true
			e.report.print(s.event(eventWouldEvict))
		}
	}
}

func (s *suspect) event(name string) *event {
	return &event{Event: name, SPIFFEID: s.name, EKHash: s.hash.String(), Name: s.machine, Reason: s.reason}
}

// evict loads the sources anew, asks them once more about each machine, and evicts the machines that are
// still refused. It notes what went wrong in problems.
func (e *evicter) evict(ctx context.Context, due []*suspect, problems map[string]string) {
	if len(due) == 0 {
		return
	}
	within, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	if err := e.site.previewer.Refresh(within); err != nil {
		problems[alarmSources] = err.Error()
		return
	}
	for _, s := range due {
		if err := e.evictOne(ctx, s); err != nil {
			problems[alarmSPIRE] = err.Error()
			return
		}
	}
}

func (e *evicter) evictOne(ctx context.Context, s *suspect) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	refused, err := e.confirm(ctx, s)
	switch {
	case err != nil:
		return err
	case !refused:
		delete(e.suspects, s.name)
		return nil
	case e.dryRun:
		e.tell(s)
		return nil
	}
	return e.delete(ctx, s)
}

// confirm reports whether a suspect is refused whatever the machine could show, and whether SPIRE still
// has the agent as it was listed.
func (e *evicter) confirm(ctx context.Context, s *suspect) (bool, error) {
	view, err := e.site.previewer.Preview(ctx, s.evidence(), false)
	if err != nil || !certain(view) { // by data no older than that which it is suspected by
		return false, nil //nolint:nilerr // it was interrupted, and nothing is certain then
	}
	s.reason = view.Result.Reason + "; " + view.Decision.Explain()
	return e.spire.unchanged(ctx, s.agent)
}

// certain reports whether nothing but a refusal is possible.
func certain(view *server.Preview) bool {
	return len(view.Possible) == 1 && view.Possible[0] == policy.Refused && view.Decision.Outcome == policy.Refused
}

// delete evicts a suspect.
func (e *evicter) delete(ctx context.Context, s *suspect) error {
	was, err := e.spire.evict(ctx, s.agent)
	if err != nil {
		return err
	}
	delete(e.suspects, s.name)
	if !was {
		e.report.print(s.event(eventGone))
		return nil
	}
	e.counts.Evicted++
	e.counts.Refused--
	e.brake.note(s.hash, e.now())
	r := e.returns[s.hash]
	if r == nil {
		r = &returned{}
		e.returns[s.hash] = r
	}
	r.times, r.last = r.times+1, e.now()
	e.report.print(s.event(eventEvicted))
	return nil
}
