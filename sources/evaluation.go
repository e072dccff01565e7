package sources

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// BeforeChallenge asks every source and decides whether the machine is worth a
// challenge:
//
//   - Challenge, if the answer to a challenge can still admit it;
//   - Unavailable, if it could if the sources that cannot tell had answered
//     as well;
//   - Refused, if neither could.
//
// This is a filter and admits nobody: AfterChallenge asks again. So a source that
// is slow is not waited for if the machine is to be challenged whatever that source
// says. Before it refuses a machine that a Poller does not list, it has that source
// polled, if the source's limit allows that, and asks it again; so it does if the
// machine could then be challenged, and not only refused or told to come again. A
// machine that no source lists so far waits only if Options.Strangers has a place
// for it.
//
// ev.Proof must be nil, or it refuses. Nothing that ev points to may be changed
// from here on: a source that is stuck may still be reading it after the decision.
// It returns within Options.CheckTimeout.
func (s *Set) BeforeChallenge(ctx context.Context, ev *Evidence) Decision {
	if ev == nil || ev.Proof != nil {
		return Decision{}
	}
	e := s.begin(ev)
	defer e.leavePlace()
	until := time.Now().Add(s.opts.CheckTimeout)
	e.ask(ctx, until)
	if len(s.polled) > 0 && !e.crowded {
		e.askEarly(ctx, until)
	}
	d := e.report()
	if d.Outcome = s.plan.decide(e.values); d.Outcome == Admitted {
		d.Outcome, d.Known = Challenge, s.plan.knows(e.values)
	}
	for i := range d.Answers {
		if d.Outcome == Challenge { // nothing is granted yet, and the caller may keep d for a while
			d.Answers[i].Verdict.Attributes = Attributes{}
		}
	}
	return d
}

// AfterChallenge asks every source, whatever it has said before the challenge, has
// a [Fetcher] ask the network if its answer can still change the decision or what
// it grants, and decides:
//
//   - Admitted, if no deny rule holds or might hold and an allow rule holds;
//   - Unavailable, if the sources that cannot tell could have made it so;
//   - Refused otherwise.
//
// It depends on nothing that another Set, or this one, has decided before: the
// configuration and the data that are current now decide. ev.Proof must be set, or
// it refuses. It returns within Options.CheckTimeout or, if the network is asked,
// within Options.FetchTimeout more.
func (s *Set) AfterChallenge(ctx context.Context, ev *Evidence) Decision {
	if ev == nil || ev.Proof == nil {
		return Decision{}
	}
	e := s.begin(ev)
	e.ask(ctx, time.Now().Add(s.opts.CheckTimeout))
	if slices.Contains(e.values, open) {
		e.fetch(ctx, time.Now().Add(s.opts.FetchTimeout))
	}
	d := e.report()
	for i, v := range e.values {
		if v == open { // the network was not asked: no failure to report, and nothing is known
			e.values[i] = unsure
		}
	}
	if d.Outcome = s.plan.decide(e.values); d.Outcome == Admitted {
		s.plan.grant(e.values, s.noAttributes, &d)
	}
	return d
}

// An evaluation is one question to a whole Set. It is used by one goroutine.
type evaluation struct {
	set     *Set
	running []*runner
	ev      *Evidence

	// values and answers are of each source, in the order of their names. A source
	// that has not answered cannot tell.
	values  []value
	answers []Answer
	// due are the sources that are to be asked next.
	due []bool

	// placed is whether it has one of the strangers' places, and crowded whether it
	// needed one and there was none.
	placed, crowded bool
}

var (
	errSlow    = errors.New("no answer yet, and the machine was challenged without it")
	errCrowded = errors.New("not waited for: too many machines that no source lists so far are waiting")
)

func (s *Set) begin(ev *Evidence) *evaluation {
	e := &evaluation{set: s, running: s.runners(), ev: ev}
	e.values = make([]value, len(e.running))
	e.due = make([]bool, len(e.running))
	e.answers = make([]Answer, len(e.running))
	for i, r := range e.running {
		e.values[i], e.due[i] = unsure, true
		e.answers[i].Source = r.name
	}
	return e
}

// takePlace reports whether a machine that no source lists so far may be waited for.
func (e *evaluation) takePlace() bool {
	if !e.placed {
		e.placed = e.set.opts.Strangers.Take()
		e.crowded = !e.placed
	}
	return e.placed
}

func (e *evaluation) leavePlace() {
	if e.placed {
		e.set.opts.Strangers.Leave()
	}
}

// mayWait reports whether the machine may be waited for: a source lists it, or there
// is a place for a stranger.
func (e *evaluation) mayWait() bool { return e.set.plan.knows(e.values) || e.takePlace() }

// report returns a Decision without its outcome: what each source has said and
// what each rule comes to by that.
func (e *evaluation) report() Decision {
	d := Decision{Answers: slices.Clone(e.answers)}
	e.set.plan.report(e.values, &d)
	return d
}

// slow is how long a source may take before the challenge until whoever waits for
// it needs a reason: machines that a healthy source lists are told from strangers by
// then. Until it has passed, an attestation needs no place among the strangers'.
const slow = 250 * time.Millisecond

// A question is one question to the sources of an evaluation that are due.
type question struct {
	network bool // it is a question to Fetch
	begun   time.Time
	until   time.Time     // when whoever has not answered is left behind
	timeout time.Duration // by which that was chosen

	// From the first source on that has to be waited for:
	asked   []*check // nil if the source is not waited for
	replies chan reply
	missing int
}

// deadline is the sources', which is a grace before until.
func (q *question) deadline() time.Time { return q.until.Add(-graceOf(q.timeout)) }

// ask asks every source that is due and fills in what each says. It waits for
// none beyond until. What may have its answer at hand is asked last, in this
// goroutine, while the others are at work.
func (e *evaluation) ask(ctx context.Context, until time.Time) {
	q := question{begun: time.Now(), until: until, timeout: e.set.opts.CheckTimeout}
	for i, r := range e.running {
		if e.due[i] && r.prompt == nil {
			e.put(ctx, &q, i)
		}
	}
	for i, r := range e.running {
		if e.due[i] && r.prompt != nil && !e.askNow(ctx, &q, i) {
			e.put(ctx, &q, i)
		}
	}
	e.wait(ctx, &q)
}

// askNow asks a prompt source and reports whether it has answered.
func (e *evaluation) askNow(ctx context.Context, q *question, i int) bool {
	v, err := e.running[i].checkNow(ctx, e.ev)
	if errors.Is(err, ErrWouldWait) {
		return false
	}
	e.settle(ctx, q, reply{source: i, verdict: v, err: err})
	return true
}

// put puts the question to a source that has to be waited for.
func (e *evaluation) put(ctx context.Context, q *question, i int) {
	if q.asked == nil {
		q.asked = make([]*check, len(e.running))
		q.replies = make(chan reply, len(e.running)) // so that a late one never blocks
	}
	e.values[i], e.answers[i] = unsure, Answer{Source: e.answers[i].Source, Err: errSlow}
	q.asked[i] = &check{fetch: q.network, deadline: q.deadline()}
	q.missing++
	go e.running[i].answer(ctx, e.ev, i, q.asked[i], q.replies)
}

// wait hears all replies that come by the end of the sources' time, and for the
// grace longer. Before the challenge it stops after a while if the machine is to be
// challenged whatever the missing ones say, or may not be waited for.
func (e *evaluation) wait(ctx context.Context, q *question) {
	if q.asked == nil {
		return
	}
	within, cancel := context.WithDeadline(ctx, q.deadline())
	defer cancel()
	var late <-chan time.Time
	if e.ev.Proof == nil {
		timer := time.NewTimer(time.Until(q.begun.Add(slow)))
		defer timer.Stop()
		late = timer.C
	}
	isLate := false
	for q.missing > 0 {
		select {
		case a := <-q.replies:
			e.hear(ctx, q, a)
		case <-late:
			isLate = true
		case <-within.Done():
			e.hearLast(ctx, q)
		}
		if isLate && q.missing > 0 && (e.set.plan.decide(e.values) == Admitted || !e.mayWait()) {
			e.leave(q)
			return
		}
	}
}

// leave waits for no further reply. A source that is at work is not disturbed, since
// a query that is cut off may cost it a connection; one that is not asked yet is not
// asked.
func (e *evaluation) leave(q *question) {
	for i, c := range q.asked {
		if c == nil {
			continue
		}
		c.state.CompareAndSwap(waiting, abandoned)
		e.answers[i].Duration = time.Since(q.begun)
		if e.crowded {
			e.answers[i].Err = errCrowded
		}
	}
	q.missing = 0
}

// hear takes one reply.
func (e *evaluation) hear(ctx context.Context, q *question, a reply) {
	q.asked[a.source] = nil
	q.missing--
	e.settle(ctx, q, a)
}

// hearLast gives the sources a last moment to end at their deadline and leaves
// behind what does not.
func (e *evaluation) hearLast(ctx context.Context, q *question) {
	timer := time.NewTimer(graceOf(q.timeout))
	defer timer.Stop()
	for over := false; q.missing > 0 && !over; {
		select {
		case a := <-q.replies:
			e.hear(ctx, q, a)
		case <-timer.C:
			over = true
		}
	}
	for i, c := range q.asked {
		if c != nil && e.running[i].abandon(c) {
			err := fmt.Errorf("no answer within %v", time.Since(q.begun).Round(time.Millisecond))
			e.hear(ctx, q, reply{source: i, err: err})
		}
	}
	for q.missing > 0 { // what could not be abandoned has just ended
		e.hear(ctx, q, <-q.replies)
	}
}

// settle notes what one source has said.
func (e *evaluation) settle(ctx context.Context, q *question, a reply) {
	answer := Answer{
		Source:   e.answers[a.source].Source,
		Verdict:  a.verdict,
		Err:      a.err,
		Duration: time.Since(q.begun),
	}
	e.answers[a.source] = answer
	e.values[a.source] = answer.value()
	r := e.running[a.source]
	r.noteUnchecked(a.verdict.Unchecked)
	switch {
	case ctx.Err() != nil && a.err != nil: // nobody has failed where the caller has left
	case q.network:
		r.noteFetch(a.err)
	default:
		r.noteCheck(a.err)
	}
}
