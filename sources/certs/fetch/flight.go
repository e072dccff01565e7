package fetch

import (
	"context"
	"fmt"
	"time"
)

const (
	// maxFlightsPerHost is the number of URLs on one host that are asked for or wait to be.
	maxFlightsPerHost = 512
	// maxCrowd is how many callers wait for a host that is silent: fewer than
	// there are places for attestations that fetch, so that silent hosts take them all
	// from nobody.
	maxCrowd = 16
	// fairTime is how long a server has to have been asked for its silence to mean
	// anything: a request may have waited for its connection until a moment ago.
	fairTime = 4 * time.Second
)

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
	renews  bool // there is something old
	// Under Fetcher.mu: how many wait, and when the server was asked.
	waiters int
	asked   time.Time

	done chan struct{} // closed when what follows is set
	// object or err is the answer. If object is stale, it is what was kept before.
	object *Object
	err    error
}

// Get returns what is known, as Cached does, or asks and waits for the answer until ctx
// ends. How long that may be is the caller's business alone. All who wait for the same
// kind and URL share one request, and the value that the parse of one of them returns.
//
// If there is no new answer, because asking has failed or ctx has ended, an object whose
// time is over is returned with Stale set, for 90 days, a CRL for ever. A request that has
// begun, or renews what is kept, goes on while Run is at work.
//
// Once a server is silent, no more than 16 callers wait for it; others are told
// ErrNotAsked at once. An error that wraps ErrNotFound is the server's word that it has
// none, one that wraps ErrSilent or ErrNotAsked no server's.
//
// The URL is one that Allowed has returned or, for EKCertificate, one file below
// one of Config.Bases.
func (f *Fetcher) Get(ctx context.Context, kind Kind, url string, parse Parse) (*Object, error) {
	if !kind.valid() {
		return nil, fmt.Errorf("the kind %.50q is not one of those that are asked for", kind)
	}
	t, err := f.policy.target(kind, url)
	if err != nil {
		return nil, err
	}
	n := name{kind, url}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if o, known, err := f.Cached(kind, url, parse); known {
			return o, err
		}
		fl, settled, why := f.join(n, t, parse)
		switch {
		case why != nil:
			return f.instead(n, why, parse)
		case !settled:
			return f.wait(ctx, fl, parse)
		}
	}
}

// join returns the request for a name, which it begins if there is none, with the caller
// among those who wait; or that it was settled meanwhile; or why the caller must not wait.
func (f *Fetcher) join(n name, t target, parse Parse) (fl *flight, settled bool, why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl = f.flights[n]
	if _, known, _ := f.find(n); fl == nil && known {
		return nil, true, nil
	}
	flights, waiting, late := f.underWay(t.host())
	switch {
	case f.closed:
		return nil, false, errClosed
	case f.unread:
		return nil, false, errUnread
	case late && waiting >= maxCrowd:
		return nil, false, errBusy
	case fl != nil:
		fl.waiters++
		return fl, false, nil
	case flights >= maxFlightsPerHost:
		return nil, false, errBusy
	}
	// The request is nobody's alone: it does not end with the caller who was first.
	ctx, cancel := context.WithCancel(context.Background())
	fl = &flight{
		name: n, host: t.host(), cancel: cancel, started: time.Now(), renews: f.old(n) != nil, waiters: 1,
		done: make(chan struct{}),
	}
	f.flights[n] = fl
	f.work.Go(func() {
		defer cancel()
		f.fly(ctx, fl, t, parse)
	})
	return fl, false, nil
}

// underWay returns how many requests to a host are under way, how many callers wait for
// them, and whether the host is silent. The caller holds f.mu.
func (f *Fetcher) underWay(host string) (flights, waiting int, late bool) {
	for _, fl := range f.flights {
		if fl.host == host {
			flights++
			waiting += fl.waiters
			late = late || f.silent(fl)
		}
	}
	return flights, waiting, late
}

func (f *Fetcher) silent(fl *flight) bool { return time.Since(fl.started) >= f.patience }

// wait waits for the answer to a request, and leaves it. When the server turns out to be
// silent, those who are too many do not wait any more.
func (f *Fetcher) wait(ctx context.Context, fl *flight, parse Parse) (*Object, error) {
	late := time.NewTimer(f.patience)
	defer late.Stop()
	for {
		select {
		case <-fl.done:
			f.leave(fl, 0)
			return fl.object, fl.err
		case <-ctx.Done():
			err := f.gaveUp(fl, ctx.Err())
			f.leave(fl, 0)
			return f.instead(fl.name, err, parse)
		case <-late.C:
			if f.leave(fl, maxCrowd) {
				return f.instead(fl.name, errBusy, parse)
			}
		}
	}
}

// gaveUp returns why there is no answer for a caller who does not wait any more.
func (f *Fetcher) gaveUp(fl *flight, why error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.asked.IsZero() || time.Since(fl.asked) < fairTime {
		return fmt.Errorf("%w: %w", errBusy, why)
	}
	return fmt.Errorf("%w: %w", ErrSilent, why)
}

// leave says that a caller does not wait any more, if more than most wait for the host.
func (f *Fetcher) leave(fl *flight, most int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, waiting, _ := f.underWay(fl.host); most > 0 && waiting <= most {
		return false
	}
	fl.waiters--
	f.endDeserted(fl)
	return true
}

// endDeserted ends a request for which nobody waits, unless Run is there to keep what comes
// and the server was asked or something is to be renewed. The caller holds f.mu.
func (f *Fetcher) endDeserted(fl *flight) {
	wanted := f.running && (fl.renews || !fl.asked.IsZero())
	if fl.waiters > 0 || wanted {
		return
	}
	fl.cancel()
	if f.flights[fl.name] == fl { // whoever comes now begins another one
		delete(f.flights, fl.name)
	}
}

// fly makes the request of a flight and tells all who wait.
func (f *Fetcher) fly(ctx context.Context, fl *flight, t target, parse Parse) {
	k, err := f.fetch(ctx, fl, t, parse)
	if err == nil {
		err = f.replace(fl.name, k)
	}
	var object *Object
	switch {
	case err == nil:
		object = k.as(nil)
	case ctx.Err() != nil: // it was ended, which says nothing of the server
		err = errClosed
	default:
		object, err = f.instead(fl.name, f.fail(fl.name, err), parse)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.object, fl.err = object, err
	if f.flights[fl.name] == fl {
		delete(f.flights, fl.name)
	}
	close(fl.done)
}

// fetch asks and reads the answer. The time that a request has begins when its connection
// is being made: before that, it waits for others to the same host.
func (f *Fetcher) fetch(ctx context.Context, fl *flight, t target, parse Parse) (k *kept, err error) {
	defer recovered(&err)
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(f.timeout, cancel)
	timer.Stop()
	defer timer.Stop()
	body, err := f.ask(whenAsked(within, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if fl.asked.IsZero() {
			fl.asked = time.Now()
			timer.Reset(f.timeout)
		}
	}), fl.name.kind, t)
	switch {
	case err != nil && ctx.Err() == nil && within.Err() != nil:
		return nil, fmt.Errorf("not finished within %v: %w", f.timeout, ErrSilent)
	case err != nil:
		return nil, bare(err)
	}
	fetched := f.now().Round(0)
	value, until, err := guarded(parse, body)
	if err != nil {
		return nil, badAnswer("the answer: %v", err)
	}
	return &kept{body: body, fetched: fetched, until: untilOf(fetched, until), value: value, parsed: true}, nil
}

// replace keeps what was fetched, in place of what is kept so far. It is an error,
// and that stays, if Successor says so. What is kept was parsed before anybody was asked, and
// nothing comes from the disk meanwhile: see Load.
func (f *Fetcher) replace(n name, k *kept) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if held := f.objects.get(n); held != nil {
		if err := succeed(k.value, held.value); err != nil {
			return badAnswer("the answer: %v", err)
		}
		k.proven = held.proven
	}
	f.objects.put(n, k)
	f.failures.Remove(n)
	f.touch()
	return nil
}
