package certfetch

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// ErrNotAsked is the error where a server was not asked, or not until it has
// answered, for a reason of the Fetcher's own. It says nothing of the server or of
// what that has, and is not remembered: who would take a missing answer for one
// must not take this for it.
var ErrNotAsked = errors.New("the server was not asked: try again")

// ErrSilent is in the error, or in Object.Stale, where the server was asked, had
// time enough, and has not answered.
var ErrSilent = errors.New("the server has not answered yet")

// fairTime is how long a server has to have been asked for its silence to mean
// anything: a request may have waited for its slot until a moment ago.
const fairTime = 4 * time.Second

var (
	errBusy   = fmt.Errorf("too many requests are waiting for an answer: %w", ErrNotAsked)
	errClosed = fmt.Errorf("the configuration has changed, or the SPIRE server is stopping: %w", ErrNotAsked)
)

// A flight is one request, for all who wait for it.
type flight struct {
	name    name
	host    string
	cancel  context.CancelFunc
	started time.Time
	// Under Fetcher.mu: how many wait, whether it has its slot, and whether it has
	// kept somebody waiting for whom there was something.
	waiters int
	begun   bool
	asked   time.Time // when it had its slot
	slow    bool

	done    chan struct{} // closed when what follows is set
	finding finding
}

// Get returns what is kept, as Cached does, or asks. All who wait for the same
// kind and URL share one request, and the value that the parse of one of them
// returns. Where an object's time is over and asking again fails, or takes longer
// than 2 seconds, it is returned with Stale set, for 90 days, a CRL for ever; the request goes on.
// One that is Dated and not good any more is waited for longer, as if there were none,
// and is returned then.
//
// Where there is nothing yet, it takes 10 seconds at most from when the server is
// asked. Once a server has kept somebody waiting for 2 seconds, no more than 16 wait
// for it; others are told ErrNotAsked at once.
//
// The URL is one that Allowed has returned or, for EKCertificate, one file below
// one of Config.Bases. Get returns when ctx ends. A failure that wraps ErrNotFound
// is the server's word that it has none, one that wraps ErrNotAsked no server's.
func (f *Fetcher) Get(ctx context.Context, kind Kind, url string, parse Parse) (*Object, error) {
	if !kind.valid() {
		return nil, fmt.Errorf("the kind %.50q is not one of those that are asked for", kind)
	}
	t, err := f.policy.target(kind, url)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o, kept, err := f.Cached(kind, url, parse); kept {
		return o, err
	}
	fl, found, err := f.join(name{kind, url}, t, parse)
	if err != nil {
		return nil, err
	}
	if fl != nil {
		if found, err = f.wait(ctx, fl, parse); err != nil {
			return nil, err
		}
	}
	if found.err != nil {
		return nil, found.err
	}
	return found.tell(), nil
}

// wait waits for the answer to a request, and leaves it.
func (f *Fetcher) wait(ctx context.Context, fl *flight, parse Parse) (finding, error) {
	patience := time.NewTimer(f.patience)
	defer patience.Stop()
	for {
		select {
		case <-fl.done:
			f.leave(fl)
			return fl.finding, nil
		case <-ctx.Done():
			err := f.gaveUp(fl, ctx.Err())
			f.leave(fl)
			if found := f.kept(fl.name, err, parse); found.object != nil {
				return found, nil
			}
			return finding{}, err
		case <-patience.C:
			if found, left, err := f.grumble(fl, parse); left {
				return found, err
			}
		}
	}
}

// grumble ends the wait of one whose patience is at its end, where there is
// something old that will do, or where too many others wait for the same host.
func (f *Fetcher) grumble(fl *flight, parse Parse) (found finding, left bool, err error) {
	found = f.kept(fl.name, ErrSilent, parse)
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting, _ := f.crowd(fl.host)
	switch {
	case found.object != nil && current(found.object.value, f.now()):
		fl.slow = true
	case waiting <= maxCrowd:
		return finding{}, false, nil
	case found.object != nil:
		found.stale = errBusy
	default:
		found, err = finding{}, errBusy
	}
	f.quit(fl)
	return found, true, err
}

// crowd returns how many wait for a host, and whether some request to it is late.
// The caller holds f.mu.
func (f *Fetcher) crowd(host string) (waiting int, late bool) {
	for _, fl := range f.flights {
		if fl.host == host {
			waiting += fl.waiters
			late = late || time.Since(fl.started) >= f.patience
		}
	}
	return waiting, late
}

// gaveUp returns why there is no answer for one who does not wait any more.
func (f *Fetcher) gaveUp(fl *flight, why error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !fl.begun || time.Since(fl.asked) < fairTime {
		return fmt.Errorf("%w: %w", errBusy, why)
	}
	return fmt.Errorf("%w: %w", ErrSilent, why)
}

// join returns the request for a name, which it begins where there is none, with
// the caller among those who wait; or what has been found meanwhile.
func (f *Fetcher) join(n name, t target, parse Parse) (*flight, finding, error) {
	host := t.host()
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.flights[n]
	if found := f.find(n); fl == nil && (found.err != nil || found.object != nil && found.object.parsed) {
		return nil, found, nil
	}
	waiting, late := f.crowd(host)
	old, crowded := f.old(n), late && waiting >= maxCrowd
	switch {
	case f.closed:
		return nil, finding{}, errClosed
	case f.unread:
		return nil, finding{}, errUnread
	case crowded && old == nil:
		return nil, finding{}, errBusy
	case crowded && old.parsed && !current(old.value, f.now()):
		return nil, finding{object: old, stale: errBusy}, nil
	case fl != nil:
		fl.waiters++
		return fl, finding{}, nil
	case len(f.flights) >= maxFlights || f.perHost[host] >= maxFlightsPerHost:
		return nil, finding{}, errBusy
	}
	// The request is nobody's alone: it does not end with the one who was first.
	ctx, cancel := context.WithCancel(context.Background())
	fl = &flight{name: n, host: host, cancel: cancel, started: time.Now(), waiters: 1, done: make(chan struct{})}
	f.flights[n] = fl
	f.perHost[host]++
	f.work.Go(func() {
		defer cancel()
		f.fly(ctx, fl, t, parse)
	})
	return fl, finding{}, nil
}

// leave says that somebody does not wait any more. A request for which nobody
// does ends, unless Run is there to keep what comes and it is under way or somebody
// has left with something old.
func (f *Fetcher) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quit(fl)
}

// quit is leave for who holds f.mu.
func (f *Fetcher) quit(fl *flight) {
	fl.waiters--
	f.endDeserted(fl)
}

func (f *Fetcher) endDeserted(fl *flight) {
	if wanted := fl.begun || fl.slow; fl.waiters == 0 && (!wanted || !f.running) {
		fl.cancel()
		f.forget(fl) // who comes now begins another one
	}
}

// forget takes a flight out of the books. The caller holds f.mu.
func (f *Fetcher) forget(fl *flight) {
	if f.flights[fl.name] != fl {
		return
	}
	delete(f.flights, fl.name)
	if f.perHost[fl.host]--; f.perHost[fl.host] == 0 {
		delete(f.perHost, fl.host)
	}
}

// fly makes the request of a flight and tells all who wait.
func (f *Fetcher) fly(ctx context.Context, fl *flight, t target, parse Parse) {
	object, err := f.fetch(ctx, fl, t, parse)
	if err == nil {
		err = f.replace(fl.name, object, parse)
	}
	found := finding{object: object}
	switch {
	case err == nil:
	case ctx.Err() != nil: // it was ended, which says nothing of the server
		found = finding{err: errClosed}
	default:
		found = f.failed(fl.name, err, parse)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.finding = found
	f.forget(fl)
	close(fl.done)
}

// replace keeps what was fetched, in place of what is kept so far. It is an error,
// and that stays, where Successor says so.
func (f *Fetcher) replace(n name, object *kept, parse Parse) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		held := f.objects.peek(n)
		if held == nil || held.parsed {
			if held != nil {
				if err := succeed(object.value, held.value); err != nil {
					return badAnswer("the answer: %v", err)
				}
				object.proven = held.proven
			}
			f.keep(n, object)
			return nil
		}
		f.mu.Unlock()
		f.parseKept(n, finding{object: held}, parse)
		f.mu.Lock()
	}
}

// failed remembers a failure, and returns what there is nevertheless.
func (f *Fetcher) failed(n name, err error, parse Parse) finding {
	f.mu.Lock()
	found := f.fail(n, err)
	f.mu.Unlock()
	if found.object != nil && !found.object.parsed {
		return f.parseKept(n, found, parse)
	}
	return found
}

// fail remembers a failure, and returns it or what there is nevertheless. The
// caller holds f.mu.
func (f *Fetcher) fail(n name, err error) finding {
	previous, _ := f.failures.get(n)
	fl := newFailure(err, previous, f.now())
	f.failures.put(n, fl)
	f.touch()
	if found := f.find(n); !found.none() {
		return found
	}
	return finding{err: fl.err()}
}

// fetch waits for a slot, asks, and reads the answer.
func (f *Fetcher) fetch(ctx context.Context, fl *flight, t target, parse Parse) (object *kept, err error) {
	defer func() {
		if r := recover(); r != nil {
			object, err = nil, fmt.Errorf("panic while it was asked for: %v\n%s", r, debug.Stack())
		}
	}()
	if err := f.slots.acquire(ctx, fl.host); err != nil {
		return nil, err
	}
	defer f.slots.release(fl.host)
	f.mu.Lock()
	fl.begun, fl.asked = true, time.Now()
	f.mu.Unlock()
	body, err := f.ask(ctx, fl.name.kind, t)
	if err != nil {
		return nil, err
	}
	fetched := f.now().Round(0)
	value, until, err := guarded(parse, body)
	if err != nil {
		return nil, badAnswer("the answer: %v", err)
	}
	return &kept{body: body, fetched: fetched, until: untilOf(fetched, until), value: value, parsed: true}, nil
}
