package evict

import (
	"context"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
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
	// interval, confirmAfter and unconfirmedFor are the constants of the same name, unless a test sets them.
	interval, confirmAfter, unconfirmedFor time.Duration

	unread   error               // why the configuration in the file is not followed
	alone    int                 // looks in a row at which the configuration had not changed
	calm     time.Time           // when alone was last two or more
	seen     map[string]*agent   // the agents at the last look, by SPIFFE ID; nil before the first look
	suspects map[string]*suspect // by SPIFFE ID
	returns  map[sources.EKHash]*returned
	counts   counts
	looked   time.Time     // when the last whole pass ended
	took     time.Duration // how long it took to list the agents and to ask about all of them
	// unwritten is why the status could not be written the last time, or empty.
	unwritten string
}

// pass looks at all agents once and evicts those that are to be evicted now. It returns when the
// next pass is due.
func (e *evicter) pass(ctx context.Context) (wait time.Duration) {
	problems, err := e.look(ctx)
	if ctx.Err() != nil { // an interrupted look has not failed
		return 0
	}
	if err != nil {
		e.report.raise(alarmSPIRE, err.Error())
		if e.unread != nil {
			e.report.raise(alarmConfiguration, e.unread.Error())
		}
		return e.interval
	}
	for _, name := range alarmNames() {
		e.report.raise(name, problems[name])
	}
	e.looked = e.now()
	wait = max(e.interval, (passShare-1)*e.took)
	for _, s := range e.suspects {
		if age := e.now().Sub(s.since); age < e.confirmAfter {
			wait = min(wait, e.confirmAfter-age)
		}
	}
	return wait
}

// look is one look, from the list of the agents to the eviction of those that must go. It returns the reason of
// each alarm that is on. If there is an error, SPIRE has not said which agents there are.
func (e *evicter) look(ctx context.Context) (problems map[string]string, err error) {
	begun := e.now()
	agents, err := e.spire.list(ctx)
	if err != nil {
		return nil, err
	}
	e.sight(agents) // who has attested since the last look?
	problems = map[string]string{}
	if e.unread != nil {
		problems[alarmConfiguration] = e.unread.Error()
	}
	if foreign := e.foreign(agents); foreign != "" { // are these the agents of this configuration?
		problems[alarmConfiguration] = foreign
		return problems, nil
	}
	problems[alarmSources] = e.judge(ctx, agents) // who is refused, and so a suspect?
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	e.took = e.now().Sub(begun) // without the eviction, which mostly waits for lists to load
	problems[alarmReadmitted] = e.readmitted()
	problems[alarmBrake] = e.braked(agents) // are there too many suspects?
	due := e.due()                          // who has been a suspect for long enough?
	switch {
	case problems[alarmBrake] == "":
		e.evict(ctx, due, problems) // who is still refused, by the newest data?
	case e.dryRun:
		e.tell(due...)
	}
	return problems, nil
}
