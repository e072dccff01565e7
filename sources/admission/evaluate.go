package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// BeforeChallenge asks every source and decides, by policy.Plan.Before, whether to challenge the
// machine.
//
// This is a filter and admits nobody: AfterChallenge asks again. So if the machine is to be
// challenged whatever a slow source says, BeforeChallenge does not wait for that source. If a
// polled list does not have the machine, and the machine could be challenged if it had, the list is
// loaded within the limit of early loads and asked again. For a machine that no source lists so
// far, BeforeChallenge waits only if Options.Wait permits it.
//
// ev.Proof must be nil, otherwise the decision is a refusal. Nothing that ev points to may be
// changed afterwards: a source that hangs may still be reading it after the decision.
// BeforeChallenge returns within Options.CheckTimeout.
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

// AfterChallenge asks every source, whatever it said before the challenge. If an answer from the
// network can still change the decision or what it grants, each sources.Fetcher concerned uses the
// network, and then the other sources are asked once more. Then policy.Plan.After decides.
//
// The decision depends on the configuration and the data that are current now, and not on anything
// that this or another Set decided before. ev.Proof must be set, otherwise the decision is a
// refusal. AfterChallenge returns within Options.CheckTimeout or, if the network is used, within
// Options.FetchTimeout plus twice Options.CheckTimeout.
func (s *Set) AfterChallenge(ctx context.Context, ev *sources.Evidence) policy.Decision {
	if ev == nil || ev.Proof == nil {
		return policy.Decision{}
	}
	e := s.begin(ev)
	e.ask(ctx, time.Now().Add(s.opts.CheckTimeout), e.all(), (*runner).checkLane)
	if worth := s.plan.WorthFetching(e.answers); len(worth) > 0 {
		e.ask(ctx, time.Now().Add(s.opts.FetchTimeout), worth, (*runner).fetchLane)
		// A fetch may take long. A machine that was removed or denied in the meantime must not be
		// admitted.
		others := slices.DeleteFunc(e.all(), func(i int) bool { return slices.Contains(worth, i) })
		e.ask(ctx, time.Now().Add(s.opts.CheckTimeout), others, (*runner).checkLane)
	}
	e.noteNotAsked()
	return s.plan.After(e.answers)
}

// An evaluation asks all sources of a Set about one machine. It is not safe for concurrent use.
type evaluation struct {
	set     *Set
	running []*runner
	ev      *sources.Evidence
	// answers has the answer of each source, in the order of their names. A source that has
	// not answered cannot tell.
	answers []policy.Answer
	// done ends the wait that Options.Wait has permitted, if waits is true. stranger is true if no
	// source listed the machine when that wait began.
	done            func()
	waits, stranger bool
	crowded         bool // Options.Wait has returned false
	patient         bool // wait for every source, even before the challenge
}

// ErrCrowded is the error in the answer of a source for which the Set did not wait because
// Options.Wait returned false.
var ErrCrowded = errors.New("not waited for: too many machines that no source lists so far are waiting")

var (
	errSlow     = errors.New("no answer yet, and the machine was challenged without it")
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

// checkLane and fetchLane return the lane for a question, the function that asks it, and the
// function that is told the result.
func (r *runner) checkLane() (*Lane, askFunc, func(error)) { return r.checks, r.check, r.noteCheck }

func (r *runner) fetchLane() (*Lane, askFunc, func(error)) { return r.fetches, r.fetch, r.noteFetch }

type askFunc func(context.Context, *sources.Evidence) (sources.Verdict, error)

// slow is how long every attestation may wait for a source before the challenge. To wait longer, it
// needs one of the strangers' places, unless another source lists the machine: by then, a healthy
// source has told its own machines from strangers.
const slow = 250 * time.Millisecond

// A question is asked of several sources at the same time.
type question struct {
	begun, until time.Time
	grace        time.Duration // how much earlier the sources' deadline is than until
	asked        map[int]*asked
	replies      chan reply // buffered for all replies, so that a late reply never blocks
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

// ask asks some sources at the same time and records their answers. It returns by the time until.
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
		if e.running[i].strict && lane.stuck.Load() > 0 {
			e.answers[i].Err = errStuck
			continue
		}
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
		context.AfterFunc(within, cancel) // a call that has begun is not cancelled
	}
}

// wait records the replies until the sources' deadline, and those that are slightly late. Before
// the challenge, it stops earlier and returns false if the machine is to be challenged whatever the
// missing sources say, or if it may not be waited for.
func (e *evaluation) wait(ctx, within context.Context, q *question) bool {
	var late <-chan time.Time
	if e.ev.Proof == nil && !e.patient {
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

// leave stops waiting for replies. A call that has begun is not cancelled, since cancelling a query
// may cost the source its connection. A call that has not begun is not made.
func (e *evaluation) leave(q *question) {
	for i, a := range q.asked {
		a.call.leave()
		e.answers[i].Duration = time.Since(q.begun)
		if e.crowded {
			e.answers[i].Err = ErrCrowded
		}
	}
}

// hearLast records the replies of sources that end at their deadline, and abandons all other calls.
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
	for len(q.asked) > 0 { // these calls had ended before they could be abandoned
		e.hear(ctx, q, <-q.replies)
	}
}

// hear records the reply of one source.
func (e *evaluation) hear(ctx context.Context, q *question, a reply) {
	note, r := q.asked[a.source].note, e.running[a.source]
	delete(q.asked, a.source)
	e.answers[a.source] = policy.Answer{
		Source: r.name, Verdict: a.verdict, Err: a.err, Duration: time.Since(q.begun),
	}
	if ctx.Err() != nil && a.err != nil { // once the caller has gone, an error is not the source's fault
		return
	}
	note(a.err)
	if e.ev.Proof != nil {
		r.noteUnchecked(a.verdict.Unchecked)
	}
}

// noteNotAsked records, in the answer of each source that needs the network, that the network was
// not used.
func (e *evaluation) noteNotAsked() {
	for i := range e.answers {
		if a := &e.answers[i]; a.NeedsNetwork() {
			a.Err = errNotAsked
		}
	}
}

// askEarly loads the lists that do not have the TPM and would change the decision if they did,
// and asks those that have new data again. It returns by the time until.
func (e *evaluation) askEarly(ctx context.Context, until time.Time) {
	missed := e.set.plan.WorthPolling(e.answers, e.set.polled)
	if len(missed) == 0 {
		return
	}
	if !e.mayWait(false) {
		for _, i := range missed { // what a new load would show is not known
			e.answers[i].Verdict, e.answers[i].Err = sources.Verdict{}, ErrCrowded
		}
		return
	}
	// A load that is in progress may have read the list before the TPM was added. If that load does
	// not help, the next one will.
	if e.loadAndAsk(ctx, until, missed) {
		e.loadAndAsk(ctx, until, e.set.plan.WorthPolling(e.answers, missed))
	}
}

// loadAndAsk loads some sources, and asks those that have new data again. It reports whether a load
// was already in progress.
func (e *evaluation) loadAndAsk(ctx context.Context, until time.Time, some []int) (joined bool) {
	attempts := map[int]*attempt{}
	for _, i := range some {
		a, underWay := e.running[i].poll.soon()
		if a != nil {
			attempts[i] = a
		}
		joined = joined || underWay
	}
	// Leave time to ask again.
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
	return joined && within.Err() == nil
}

// mayWait reports whether the machine may be waited for, and begins that wait. known is true if a
// source already lists the machine.
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
