package admission

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// BeforeChallenge asks every source and decides whether the machine is worth a
// challenge, as policy.Plan.Before has it.
//
// This is a filter and admits nobody: AfterChallenge asks again. So a source that
// is slow is not waited for if the machine is to be challenged whatever that source
// says. Before it refuses a machine that a polled list does not have, it has that list
// loaded, within the limit of early loads, and asks it again; so it does if the machine
// could then be challenged, and not only refused or told to come again. A machine that
// no source lists so far is waited for only as Options.Wait has it.
//
// ev.Proof must be nil, or it refuses. Nothing that ev points to may be changed
// from here on: a source that is stuck may still be reading it after the decision.
// It returns within Options.CheckTimeout.
func (s *Set) BeforeChallenge(ctx context.Context, ev *sources.Evidence) policy.Decision {
	if ev == nil || ev.Proof != nil {
		return policy.Decision{}
	}
	e := s.begin(ev)
	defer func() { e.done() }()
	until := time.Now().Add(s.opts.CheckTimeout)
	e.ask(ctx, until, e.all(), (*runner).checkLane)
	if !e.crowded {
		e.askEarly(ctx, until)
	}
	return s.plan.Before(e.answers)
}

// AfterChallenge asks every source, whatever it has said before the challenge, has
// a sources.Fetcher ask the network if its answer can still change the decision or what
// it grants, and decides as policy.Plan.After has it.
//
// It depends on nothing that another Set, or this one, has decided before: the
// configuration and the data that are current now decide. ev.Proof must be set, or
// it refuses. It returns within Options.CheckTimeout or, if the network is asked,
// within Options.FetchTimeout more.
func (s *Set) AfterChallenge(ctx context.Context, ev *sources.Evidence) policy.Decision {
	if ev == nil || ev.Proof == nil {
		return policy.Decision{}
	}
	e := s.begin(ev)
	e.ask(ctx, time.Now().Add(s.opts.CheckTimeout), e.all(), (*runner).checkLane)
	if worth := s.plan.WorthFetching(e.answers); len(worth) > 0 {
		e.ask(ctx, time.Now().Add(s.opts.FetchTimeout), worth, (*runner).fetchLane)
	}
	e.noteNotAsked()
	return s.plan.After(e.answers)
}

// An evaluation is one question to a whole Set. It is used by one goroutine.
type evaluation struct {
	set     *Set
	running []*runner
	ev      *sources.Evidence
	// answers are of each source, in the order of their names. A source that has not
	// answered cannot tell.
	answers []policy.Answer
	// done ends the wait; before it waits, that does nothing. stranger is whether no
	// source listed the machine when the wait began.
	done            func()
	waits, stranger bool
	crowded         bool // it was not to be waited for
}

var (
	errSlow     = errors.New("no answer yet, and the machine was challenged without it")
	errCrowded  = errors.New("not waited for: too many machines that no source lists so far are waiting")
	errNotAsked = fmt.Errorf("%w, which was not asked: no answer would have changed the decision",
		sources.ErrNeedsNetwork)
)

func (s *Set) begin(ev *sources.Evidence) *evaluation {
	e := &evaluation{set: s, running: s.runners(), ev: ev, done: func() {}}
	e.answers = make([]policy.Answer, len(e.running))
	for i, r := range e.running {
		e.answers[i] = policy.Answer{Source: r.name, Err: errSlow}
	}
	return e
}

func (e *evaluation) all() []int {
	all := make([]int, len(e.running))
	for i := range all {
		all[i] = i
	}
	return all
}

// checkLane and fetchLane return how a source is asked, and who is told how that went.
func (r *runner) checkLane() (*Lane, askFunc, func(error)) { return r.checks, r.check, r.noteCheck }

func (r *runner) fetchLane() (*Lane, askFunc, func(error)) { return r.fetches, r.fetch, r.noteFetch }

type askFunc func(context.Context, *sources.Evidence) (sources.Verdict, error)

// slow is how long a source may take before the challenge until whoever waits for
// it needs a reason: machines that a healthy source lists are told from strangers by
// then. Until it has passed, an attestation needs no place among the strangers'.
const slow = 250 * time.Millisecond

// A question is one question to some sources of an evaluation.
type question struct {
	begun, until time.Time
	grace        time.Duration // by which the sources' deadline is before until
	asked        map[int]*asked
	replies      chan reply // has room for every reply, so that a late one never blocks
}

// asked is a source that has not answered yet.
type asked struct {
	call *call
	note func(error)
}

// A reply is the answer of the source with this index.
type reply struct {
	source  int
	verdict sources.Verdict
	err     error
}

// ask asks some sources at once and fills in what each says. It waits for none beyond
// until.
func (e *evaluation) ask(
	ctx context.Context, until time.Time, some []int, how func(*runner) (*Lane, askFunc, func(error)),
) {
	q := question{
		begun: time.Now(), until: until, grace: graceOf(time.Until(until)),
		asked: make(map[int]*asked, len(some)), replies: make(chan reply, len(some)),
	}
	within, cancel := context.WithDeadline(ctx, until.Add(-q.grace))
	left := false
	defer func() {
		if !left {
			cancel()
		}
	}()
	for _, i := range some {
		lane, ask, note := how(e.running[i])
		e.answers[i] = policy.Answer{Source: e.running[i].name, Err: errSlow}
		var v sources.Verdict
		q.asked[i] = &asked{note: note, call: lane.start(within, func(ctx context.Context) (err error) {
			v, err = ask(ctx, e.ev)
			return err
		}, func(err error) {
			if err != nil {
				v = sources.Verdict{}
			}
			q.replies <- reply{i, v, err}
		})}
	}
	if left = !e.wait(ctx, within, &q); left {
		context.AfterFunc(within, cancel) // a source that is at work is not disturbed
	}
}

// wait hears all replies that come by the end of the sources' time, and for the
// grace longer. Before the challenge it stops after a while, and reports false, if the
// machine is to be challenged whatever the missing ones say, or may not be waited for.
func (e *evaluation) wait(ctx, within context.Context, q *question) bool {
	var late <-chan time.Time
	if e.ev.Proof == nil {
		timer := time.NewTimer(time.Until(q.begun.Add(slow)))
		defer timer.Stop()
		late = timer.C
	}
	isLate := false
	for len(q.asked) > 0 {
		select {
		case a := <-q.replies:
			e.hear(ctx, q, a)
		case <-late:
			isLate = true
		case <-within.Done():
			e.hearLast(ctx, q)
		}
		if isLate && len(q.asked) > 0 && (e.set.plan.Challenges(e.answers) || !e.mayWait(e.set.plan.Knows(e.answers))) {
			e.leave(q)
			return false
		}
	}
	return true
}

// leave waits for no further reply. A source that is at work is not disturbed, since
// a query that is cut off may cost it a connection; one that is not asked yet is not
// asked.
func (e *evaluation) leave(q *question) {
	for i, a := range q.asked {
		a.call.state.CompareAndSwap(waiting, abandoned)
		e.answers[i].Duration = time.Since(q.begun)
		if e.crowded {
			e.answers[i].Err = errCrowded
		}
	}
}

// hearLast gives the sources a last moment to end at their deadline and leaves
// behind what does not.
func (e *evaluation) hearLast(ctx context.Context, q *question) {
	timer := time.NewTimer(q.grace)
	defer timer.Stop()
	for over := false; len(q.asked) > 0 && !over; {
		select {
		case a := <-q.replies:
			e.hear(ctx, q, a)
		case <-timer.C:
			over = true
		}
	}
	for i, a := range q.asked {
		if a.call.abandon() {
			err := fmt.Errorf("no answer within %v", time.Since(q.begun).Round(time.Millisecond))
			e.hear(ctx, q, reply{source: i, err: err})
		}
	}
	for len(q.asked) > 0 { // what could not be abandoned has just ended
		e.hear(ctx, q, <-q.replies)
	}
}

// hear notes what one source has said.
func (e *evaluation) hear(ctx context.Context, q *question, a reply) {
	note, r := q.asked[a.source].note, e.running[a.source]
	delete(q.asked, a.source)
	e.answers[a.source] = policy.Answer{
		Source: r.name, Verdict: a.verdict, Err: a.err, Duration: time.Since(q.begun),
	}
	if ctx.Err() != nil && a.err != nil { // nobody has failed if the caller has left
		return
	}
	note(a.err)
	if e.ev.Proof != nil {
		r.noteUnchecked(a.verdict.Unchecked)
	}
}

// noteNotAsked says of each source that needs the network that it was not asked.
func (e *evaluation) noteNotAsked() {
	for i := range e.answers {
		if a := &e.answers[i]; a.NeedsNetwork() {
			a.Err = errNotAsked
		}
	}
}

// askEarly has the lists loaded that do not have the TPM and would decide if they did,
// and asks those again that have new data, all by the time until.
func (e *evaluation) askEarly(ctx context.Context, until time.Time) {
	missed := e.set.plan.WorthPolling(e.answers, e.set.polled)
	if len(missed) == 0 {
		return
	}
	if !e.mayWait(false) {
		for _, i := range missed { // a load that is not waited for might list it
			e.answers[i].Verdict, e.answers[i].Err = sources.Verdict{}, errCrowded
		}
		return
	}
	attempts := map[int]*attempt{}
	for _, i := range missed {
		if a := e.running[i].poll.soon(); a != nil {
			attempts[i] = a
		}
	}
	// There has to be time to ask again.
	within, cancel := context.WithDeadline(ctx, until.Add(-2*graceOf(e.set.opts.CheckTimeout)))
	defer cancel()
	var again []int
	for i, a := range attempts {
		select {
		case <-a.ended:
			if a.loaded {
				again = append(again, i)
			}
		case <-within.Done():
		}
	}
	if len(again) > 0 && ctx.Err() == nil {
		e.ask(ctx, until, again, (*runner).checkLane)
	}
}

// mayWait reports whether the machine may be waited for, which begins then. known is
// whether a source lists it so far.
func (e *evaluation) mayWait(known bool) bool {
	if e.stranger || known && e.waits {
		return true
	}
	done, ok := e.set.opts.Wait(e.ev, known)
	if e.crowded = !ok; ok {
		e.done()
		e.done, e.waits, e.stranger = done, true, !known
	}
	return ok
}
