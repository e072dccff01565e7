package certfetch

import (
	"cmp"
	"errors"
	"strings"
	"time"
	"unicode"
)

// How much is kept of what was not accepted; shelves.go has the rest.
const (
	// maxFailures is how many. A thousand URLs that lead nowhere push out nothing
	// that is of use.
	maxFailures = 4096
	// maxProblem is the length of the text of a failure, in bytes.
	maxProblem = 300
)

// How long it is kept.
const (
	// DefaultAge is how long an object is kept whose Parse says nothing, and
	// maxAge how long whatever it says.
	DefaultAge, maxAge = 30 * 24 * time.Hour, 90 * 24 * time.Hour
	// minAge is how long it is kept at least.
	minAge = time.Minute
	// maxStaleAge is how long it goes on beyond that, where asking again fails.
	maxStaleAge = 90 * 24 * time.Hour
	// doubtAge is the age from which an object that is in doubt is asked for
	// again.
	doubtAge = 10 * time.Minute
	// The first failure of a server is remembered for failureAge, which doubles
	// with each that follows up to maxFailureAge; one in which it has answered
	// what asking again does not change for maxFailureAge.
	failureAge, maxFailureAge = time.Minute, 10 * time.Minute
	// clockSlack is how far the clock may be set back after something was fetched: a
	// correction, not a jump. Beyond that an object is asked for anew, and goes on if
	// that fails; a failure counts as not kept.
	clockSlack = 5 * time.Second
)

// A name is what an answer is kept by.
type name struct {
	kind Kind
	url  string
}

// kept is an answer that was accepted. It is never changed, only replaced.
type kept struct {
	body           []byte
	fetched, until time.Time
	// value is what Parse has made of the body. parsed is false where the body
	// has come from the disk and was not used yet.
	value  any
	parsed bool
	// proven is whether Prove was told of its name, for an issuer.
	proven bool
}

// failure is that there was none. It is never changed, only replaced.
type failure struct {
	problem   string
	notFound  bool
	silent    bool // not on the disk
	at, until time.Time
	// times is how often in a row the server has failed.
	times int
}

// newFailure returns the failure after previous, which may be nil.
func newFailure(err error, previous *failure, now time.Time) *failure {
	fl := &failure{
		problem:  cmp.Or(printable(err.Error()), "it gave no reason"),
		notFound: errors.Is(err, ErrNotFound), silent: errors.Is(err, ErrSilent),
		at: now, until: now.Add(maxFailureAge), times: 1,
	}
	var bad *badAnswerError
	if fl.notFound || errors.As(err, &bad) {
		return fl
	}
	if previous != nil && previous.counts(now) && now.Sub(previous.until) < time.Hour {
		fl.times = min(previous.times, 10) + 1
	}
	fl.until = now.Add(min(failureAge<<(fl.times-1), maxFailureAge))
	return fl
}

// printable returns a text, which may be partly a server's, for one line of a log.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxProblem {
		s = strings.ToValidUTF8(s[:maxProblem], "") + "…"
	}
	return s
}

// counts reports whether the failure is in the past.
func (fl *failure) counts(now time.Time) bool { return !fl.at.After(now.Add(clockSlack)) }

// holds reports whether nobody is asked again yet.
func (fl *failure) holds(now time.Time) bool { return fl.counts(now) && now.Before(fl.until) }

// A failedError is a failure as it is told.
type failedError struct {
	problem          string
	notFound, silent bool
}

func (e *failedError) Error() string { return e.problem }

// Is reports what the failure is besides its text.
func (e *failedError) Is(target error) bool {
	return target == ErrNotFound && e.notFound || target == ErrSilent && e.silent
}

func (fl *failure) err() error { return &failedError{fl.problem, fl.notFound, fl.silent} }

// untilOf returns until when an answer is kept that was fetched at some time.
func untilOf(fetched, wanted time.Time) time.Time {
	switch earliest, latest := fetched.Add(minAge), fetched.Add(maxAge); {
	case wanted.IsZero():
		return fetched.Add(DefaultAge)
	case wanted.Before(earliest):
		return earliest
	case wanted.After(latest):
		return latest
	}
	return wanted
}

// A finding is what is kept by a name at some time. All of it is nil where
// the network would have to be asked.
type finding struct {
	object *kept
	stale  error // where the time of object is over
	err    error // a failure that is remembered; there is no object then
}

func (f finding) none() bool { return f.object == nil && f.err == nil }

// find returns what is kept. The caller holds f.mu.
func (f *Fetcher) find(n name) finding {
	now := f.now()
	object := f.old(n)
	if object != nil && now.Before(object.until) && !object.fetched.After(now.Add(clockSlack)) {
		return finding{object: object}
	}
	fl, ok := f.failures.get(n)
	request := f.flights[n]
	switch {
	case ok && fl.holds(now) && object == nil:
		return finding{err: fl.err()}
	case ok && fl.holds(now):
		return finding{object: object, stale: fl.err()}
	case object != nil && request != nil && request.slow && current(object.value, now):
		return finding{object: object, stale: ErrSilent}
	}
	return finding{}
}

// old returns the object that is kept, though its time may be over; nil if it is over
// for too long. A CRL is kept at any age and by any clock: what it lists stays revoked,
// and whoever sets the clock must not bring that back. The caller holds f.mu.
func (f *Fetcher) old(n name) *kept {
	object, ok := f.objects.get(n)
	if !ok || n.kind.base() != CRL && f.now().After(object.until.Add(maxStaleAge)) {
		return nil
	}
	return object
}

// keep keeps an object. The caller holds f.mu.
func (f *Fetcher) keep(n name, k *kept) {
	f.objects.put(n, k)
	f.failures.drop(n)
	f.touch()
}
