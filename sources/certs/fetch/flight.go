package fetch

import (
	"context"
	"fmt"
	"time"
)

const (
	// maxFlightsPerHost is the maximum number of URLs on one host for which requests are in
	// progress or waiting.
	maxFlightsPerHost = 512
	// maxCrowd is the maximum number of callers that wait for a silent host. It is less than the
	// number of attestations that may fetch at a time, so that a silent host does not take all of
	// their places.
	maxCrowd = 16
	// fairTime is how long ago a server must have been asked for its silence to mean anything: the
	// request may have waited for its connection until just before.
	fairTime = 4 * time.Second
)

var (
	errBusy   = fmt.Errorf("too many requests are waiting for an answer: %w", ErrNotAsked)
	errClosed = fmt.Errorf("the configuration has changed, or the SPIRE server is stopping: %w", ErrNotAsked)
)

// A flight is one request, shared by all callers that wait for it.
type flight struct {
	name    name
	host    string
	cancel  context.CancelFunc
	started time.Time
	renews  bool // there is an old object
	// Guarded by Fetcher.mu: the number of waiting callers, and when the server was asked.
	waiters int
	asked   time.Time

	done chan struct{} // closed when the following fields are set
	// object or err is the answer. A stale object is the one that was kept before.
	object *Object
	err    error
}

// Get returns what is known, like Cached, or else asks the server and waits for the answer until
// ctx ends. Only the caller decides how long that may be. All callers that wait for the same kind
// and URL share one request, and the value that one caller's parse returns.
//
// If there is no new answer, because the request has failed or ctx has ended, an object whose Until
// has passed is returned with Stale set, for up to 90 days after Until, and a CRL without limit. A
// request that has begun, or that renews an object, continues while Run is running.
//
// When a server is silent, at most 16 callers wait for it; others get ErrNotAsked at once. An error
// that wraps ErrNotFound means that the server has said that it has none. Errors that wrap
// ErrSilent or ErrNotAsked do not come from a server.
//
// The URL must be one that Allowed has returned or, for EKCertificate, a file directly below one of
// Config.Bases.
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

// join returns the request for a name, and begins one if there is none; the caller is added to
// those that wait for it. settled means that the answer is known by now. why is the reason why the
// caller must not wait.
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
	// The request does not belong to one caller: it does not end when the first caller leaves.
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

// underWay returns the number of requests to a host that are in progress, the number of callers
// that wait for them, and whether the host is silent. The caller must hold f.mu.
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

// wait waits for the answer to a request, and then leaves the request. When the server turns out to
// be silent, surplus callers stop waiting.
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

// gaveUp returns why there is no answer for a caller that has stopped waiting.
func (f *Fetcher) gaveUp(fl *flight, why error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.asked.IsZero() || time.Since(fl.asked) < fairTime {
		return fmt.Errorf("%w: %w", errBusy, why)
	}
	return fmt.Errorf("%w: %w", ErrSilent, why)
}

// leave removes a waiting caller, unless most is not zero and no more than most callers wait for
// the host.
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

// endDeserted ends a request for which nobody waits, unless Run is running, so that the answer will
// be kept, and the server was asked or an object is to be renewed. The caller must hold f.mu.
func (f *Fetcher) endDeserted(fl *flight) {
	wanted := f.running && (fl.renews || !fl.asked.IsZero())
	if fl.waiters > 0 || wanted {
		return
	}
	fl.cancel()
	if f.flights[fl.name] == fl { // the next caller begins another request
		delete(f.flights, fl.name)
	}
}

// fly makes the request of a flight and wakes all who wait for it.
func (f *Fetcher) fly(ctx context.Context, fl *flight, t target, parse Parse) {
	k, err := f.fetch(ctx, fl, t, parse)
	if err == nil {
		err = f.replace(fl.name, k)
	}
	var object *Object
	switch {
	case err == nil:
		object = k.as(nil)
	case ctx.Err() != nil: // it was cancelled, which says nothing about the server
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

// fetch makes the request and reads the answer. The timeout begins when the connection is being
// made: before that, the request waits for others to the same host.
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

// replace keeps what was fetched, in place of the previous object. It returns an error, and the
// previous object stays, if Successor requires that. The previous object was parsed before the
// server was asked, and no other can have come from the disk in the meantime: see Load.
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
