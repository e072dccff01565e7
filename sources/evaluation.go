package sources

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Begin returns the evaluation of one Evidence under the Set's policy. ev.Proof
// must be nil, and nothing that ev points to is changed from here on: a source
// that is stuck may still be reading it after the decision.
func (s *Set) Begin(ev *Evidence) *Evaluation {
	e := &Evaluation{set: s, running: s.runners(), ev: ev}
	e.values = make([]value, len(e.running))
	e.due = make([]bool, len(e.running))
	e.answers = make([]Answer, len(e.running))
	for i, r := range e.running {
		e.values[i], e.due[i] = open, true
		e.answers[i].Source = r.name
	}
	return e
}

// An Evaluation is one Evidence on its way through a Set. It is used by one
// goroutine. The zero Evaluation refuses.
type Evaluation struct {
	set     *Set
	running []*runner
	ev      *Evidence
	step    step

	// values and answers are of each source, in the order of their names.
	values  []value
	answers []Answer
	// due are the sources that are to be asked next.
	due []bool
}

// A step is how far an Evaluation has come.
type step int

const (
	begun step = iota
	challenged
	ended
)

// BeforeChallenge asks every source and decides whether the machine is to be
// challenged:
//
//   - Challenge, where the second step can still admit it;
//   - Unavailable, where it could if the sources that cannot tell had answered
//     as well;
//   - Refused, where neither could.
//
// Before it refuses a machine that a Poller does not list, it has that one polled,
// if its limit allows that, and asks it again; so it does where the machine could
// be challenged then, and not only refused or told to come again.
//
// It returns within Options.CheckTimeout. It is called once, and refuses
// otherwise.
func (e *Evaluation) BeforeChallenge(ctx context.Context) Decision {
	if e.set == nil || e.step != begun || e.ev == nil || e.ev.Proof != nil {
		e.step = ended
		return Decision{}
	}
	e.step = ended
	until := time.Now().Add(e.set.opts.CheckTimeout)
	e.ask(ctx, e.ev, until)
	if len(e.set.polled) > 0 {
		e.askEarly(ctx, until)
	}
	d := e.report()
	if d.Outcome = e.set.plan.decide(e.values); d.Outcome == Admitted {
		d.Outcome, d.Known = Challenge, e.set.plan.knows(e.values)
		e.step = challenged
	}
	return d
}

// AfterChallenge asks again the sources that needed the challenge, keeps what
// the others have said, has a [Fetcher] ask the network where its answer can still
// change the decision or what it grants, and decides:
//
//   - Admitted, where no deny rule holds or might hold and an allow rule holds;
//   - Unavailable, where the sources that cannot tell could have made it so;
//   - Refused otherwise.
//
// It returns within Options.CheckTimeout or, where the network is asked, within
// Options.FetchTimeout more. It is called once, after BeforeChallenge has answered
// Challenge, and refuses otherwise or where proof is nil.
func (e *Evaluation) AfterChallenge(ctx context.Context, proof *Proof) Decision {
	if e.step != challenged || proof == nil {
		e.step = ended
		return Decision{}
	}
	e.step = ended
	if slices.Contains(e.values, open) {
		e.askOpen(ctx, proof)
	}
	d := e.report()
	for i, v := range e.values {
		if v == open { // the network was not asked: no failure to report, and nothing is known
			e.values[i] = unsure
		}
	}
	if d.Outcome = e.set.plan.decide(e.values); d.Outcome == Admitted {
		e.set.plan.grant(e.values, e.set.noAttributes, &d)
	}
	return d
}

// askOpen asks the sources that have left their answer open, now that the machine
// has proved that it holds its EK.
func (e *Evaluation) askOpen(ctx context.Context, proof *Proof) {
	ev := *e.ev // a check that is stuck may still read the first one
	ev.Proof = proof
	again := false
	for i, v := range e.values {
		e.due[i] = v == open && errors.Is(e.answers[i].Err, ErrNeedsChallenge)
		again = again || e.due[i]
	}
	if again {
		e.ask(ctx, &ev, time.Now().Add(e.set.opts.CheckTimeout))
	}
	if slices.Contains(e.values, open) {
		e.fetch(ctx, &ev, time.Now().Add(e.set.opts.FetchTimeout))
	}
}

// report returns a Decision without its outcome: what each source has said and
// what each rule comes to by that.
func (e *Evaluation) report() Decision {
	d := Decision{Answers: slices.Clone(e.answers)}
	e.set.plan.report(e.values, &d)
	return d
}

// A question is one question to the sources of an Evaluation that are due.
type question struct {
	network bool // it is a question to Fetch
	begun   time.Time
	until   time.Time     // when whoever has not answered is left behind
	timeout time.Duration // by which that was chosen

	// From the first source on that has to be waited for:
	within  context.Context //nolint:containedctx // the sources', which ends a grace before until
	cancel  context.CancelFunc
	asked   []*check // nil where the source is not waited for
	replies chan reply
	missing int
}

// ask asks every source that is due and fills in what each says. It waits for
// none beyond until. What may have its answer at hand is asked last, in this
// goroutine, while the others are at work.
func (e *Evaluation) ask(ctx context.Context, ev *Evidence, until time.Time) {
	q := question{begun: time.Now(), until: until, timeout: e.set.opts.CheckTimeout}
	for i, r := range e.running {
		if e.due[i] && r.prompt == nil {
			e.begin(ctx, ev, &q, i)
		}
	}
	for i, r := range e.running {
		if e.due[i] && r.prompt != nil && !e.askNow(ctx, ev, &q, i) {
			e.begin(ctx, ev, &q, i)
		}
	}
	e.wait(ctx, &q)
}

// askNow asks a prompt source and reports whether it has answered.
func (e *Evaluation) askNow(ctx context.Context, ev *Evidence, q *question, i int) bool {
	v, err := e.running[i].checkNow(ctx, ev)
	if errors.Is(err, ErrWouldWait) {
		return false
	}
	e.settle(ctx, q, reply{source: i, verdict: v, err: err})
	return true
}

// begin asks a source that has to be waited for.
func (e *Evaluation) begin(ctx context.Context, ev *Evidence, q *question, i int) {
	if q.asked == nil {
		q.within, q.cancel = context.WithDeadline(ctx, q.until.Add(-graceOf(q.timeout)))
		q.asked = make([]*check, len(e.running))
		q.replies = make(chan reply, len(e.running)) // so that a late one never blocks
	}
	q.asked[i] = &check{fetch: q.network}
	q.missing++
	go e.running[i].answer(q.within, ev, i, q.asked[i], q.replies)
}

// wait hears all replies that come by the end of the sources' time, and for the
// grace longer.
func (e *Evaluation) wait(ctx context.Context, q *question) {
	if q.asked == nil {
		return
	}
	defer q.cancel()
	for q.missing > 0 {
		select {
		case a := <-q.replies:
			e.hear(ctx, q, a)
		case <-q.within.Done():
			e.hearLast(ctx, q)
		}
	}
}

// hear takes one reply.
func (e *Evaluation) hear(ctx context.Context, q *question, a reply) {
	q.asked[a.source] = nil
	q.missing--
	e.settle(ctx, q, a)
}

// hearLast gives the sources a last moment to end at their deadline and leaves
// behind what does not.
func (e *Evaluation) hearLast(ctx context.Context, q *question) {
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
func (e *Evaluation) settle(ctx context.Context, q *question, a reply) {
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
