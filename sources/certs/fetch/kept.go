package fetch

import (
	"cmp"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// The limits of what is remembered about failures.
const (
	// maxFailures is the maximum number of failures. A thousand URLs that lead nowhere do not evict
	// anything useful.
	maxFailures = 4096
	// maxProblem is the maximum length of the text of a failure, in bytes.
	maxProblem = 300
)

// Objects are kept on shelves by what it takes to have one kept, so that objects that anybody can
// cause do not evict those that take more. Each shelf is limited in the number of objects and in
// bytes of memory, as counted by costOf.
const (
	// Issuers for which Prove was called.
	maxIssuers, maxIssuerBytes = 2048, 32 << 20
	// Other issuers. An attesting machine can fill this shelf with any CA certificate that is on an
	// allowed host, under any number of URLs.
	maxUnproven, maxUnprovenBytes = 256, 4 << 20
	// EK certificates, which services have only for EKs that were proved.
	maxEKs, maxEKBytes = 16_000, 96 << 20
	// CRLs, which must be signed by trusted CAs.
	maxCRLs, maxCRLBytes = 2048, 128 << 20
)

// How long it is kept.
const (
	// defaultAge is how long an object is kept for which Parse returned no time, and maxAge is the
	// longest time whatever Parse returned.
	defaultAge, maxAge = 30 * 24 * time.Hour, 90 * 24 * time.Hour
	// minAge is the shortest time.
	minAge = time.Minute
	// maxStaleAge is how long an object stays in use beyond that if it cannot be fetched again.
	maxStaleAge = 90 * 24 * time.Hour
	// doubtAge is the age from which on an object that is in doubt is fetched again.
	doubtAge = 10 * time.Minute
	// The first failure of a server is remembered for failureAge, which doubles with each further
	// failure up to maxFailureAge. An answer that would not change if it were requested again is
	// remembered for maxFailureAge.
	failureAge, maxFailureAge = time.Minute, 10 * time.Minute
	// clockSlack is how far the clock may be set back after something was fetched: a correction,
	// not a jump. Beyond that, an object is fetched again, and stays in use if that fails; a
	// failure is ignored.
	clockSlack = 5 * time.Second
)

// A name identifies an answer.
type name struct {
	kind Kind
	url  string
}

// kept is an answer that was accepted. It is immutable, but may be replaced.
type kept struct {
	body           []byte
	fetched, until time.Time
	// value is what Parse returned for the body. parsed is false if the body has come from the disk
	// and has not been used yet.
	value  any
	parsed bool
	// proven is true if Prove was called for its name, which is an issuer's.
	proven bool
}

// failure says, as an error, why there is no answer. It is immutable, but may be replaced.
type failure struct {
	problem   string
	notFound  bool
	silent    bool // not stored on disk
	at, until time.Time
	// times is the number of failures of the server in a row.
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

// printable returns a text, which may be partly from a server, in a form for one line of a log.
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

// counts reports whether the failure is in the past, apart from clockSlack.
func (fl *failure) counts(now time.Time) bool { return !fl.at.After(now.Add(clockSlack)) }

// holds reports whether the server must not be asked again yet.
func (fl *failure) holds(now time.Time) bool { return fl.counts(now) && now.Before(fl.until) }

func (fl *failure) Error() string { return fl.problem }

// Is implements the method that errors.Is looks for.
func (fl *failure) Is(target error) bool {
	return target == ErrNotFound && fl.notFound || target == ErrSilent && fl.silent
}

// untilOf returns the time until which an answer is kept, given when it was fetched and the time
// that Parse returned.
func untilOf(fetched, wanted time.Time) time.Time {
	switch earliest, latest := fetched.Add(minAge), fetched.Add(maxAge); {
	case wanted.IsZero():
		return fetched.Add(defaultAge)
	case wanted.Before(earliest):
		return earliest
	case wanted.After(latest):
		return latest
	}
	return wanted
}

// as returns the object for a caller. stale says why there is nothing newer.
func (k *kept) as(stale error) *Object {
	return &Object{Value: k.value, Body: k.body, Fetched: k.fetched, Until: k.until, Stale: stale}
}

// find implements Cached, except that it ignores what parseKept has not parsed. The caller must
// hold f.mu.
func (f *Fetcher) find(n name) (o *Object, known bool, err error) {
	now := f.now()
	k := f.old(n)
	if k != nil && now.Before(k.until) && !k.fetched.After(now.Add(clockSlack)) {
		return k.as(nil), true, nil
	}
	fl, failed := f.failures.Get(n)
	failed = failed && fl.holds(now)
	request := f.flights[n]
	switch {
	case failed && k == nil:
		return nil, true, fl
	case failed:
		return k.as(fl), true, nil
	case k == nil:
		return nil, false, nil
	case request != nil && f.silent(request):
		return k.as(ErrSilent), false, nil
	}
	return k.as(ErrNotAsked), false, nil
}

// old returns the object that is kept and parsed, even if its Until has passed; nil if that is too
// long ago. A CRL is kept at any age and by any clock: what it lists stays revoked, and setting the
// clock must not undo that. The caller must hold f.mu.
func (f *Fetcher) old(n name) *kept {
	k := f.objects.get(n)
	if k == nil || !k.parsed || n.kind.base() != CRL && f.now().After(k.until.Add(maxStaleAge)) {
		return nil
	}
	return k
}

// instead returns the object that is kept, even if its Until has passed, with why as its Stale. If
// there is none, it returns why as the error.
func (f *Fetcher) instead(n name, why error, parse Parse) (*Object, error) {
	f.parseKept(n, parse)
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.old(n); k != nil {
		return k.as(why), nil
	}
	return nil, why
}

// parseKept parses an object that has come from the disk and has not been used yet. What parse
// refuses is dropped.
func (f *Fetcher) parseKept(n name, parse Parse) {
	f.mu.Lock()
	from := f.objects.get(n)
	f.mu.Unlock()
	if from == nil || from.parsed {
		return
	}
	value, until, err := guarded(parse, from.body)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.objects.get(n) != from: // somebody else was faster
	case err != nil:
		f.objects.drop(n)
		f.touch()
	default:
		next := *from
		next.value, next.parsed = value, true
		if until = untilOf(next.fetched, until); until.Before(next.until) {
			next.until = until
		}
		f.objects.put(n, &next)
	}
}

// fail remembers a failure and returns it.
func (f *Fetcher) fail(n name, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	previous, _ := f.failures.Get(n)
	fl := newFailure(err, previous, f.now())
	f.failures.Add(n, fl)
	f.touch()
	return fl
}

// newLRU returns a map of a limited number of items that evicts the least recently used one.
func newLRU[V any](items int, gone func(name, V)) *simplelru.LRU[name, V] {
	l, err := simplelru.NewLRU(items, gone)
	if err != nil { // the number is a constant
		panic(err)
	}
	return l
}

// costOf returns an upper bound of the memory that an object takes, in bytes. A certificate of 340
// bytes takes 3 KiB when it is parsed, and an issuer's body may have many of them; a CRL in PEM is
// in memory twice.
func costOf(n name, k *kept) int64 {
	const parsed = 4 << 10
	body := int64(len(k.body))
	cost := 2*body + parsed
	if n.kind.base() == Issuer {
		cost = max(cost, 10*body)
	}
	return cost + int64(len(n.url)+len(n.kind))
}

// A shelf is a map of objects that is also limited in bytes.
type shelf struct {
	*simplelru.LRU[name, *kept]
	bytes, most int64
}

func newShelf(objects int, most int64) *shelf {
	s := &shelf{most: most}
	s.LRU = newLRU(objects, func(n name, k *kept) { s.bytes -= costOf(n, k) })
	return s
}

// add adds k under a name that is not there yet.
func (s *shelf) add(n name, k *kept) {
	s.bytes += costOf(n, k)
	s.Add(n, k)
	for s.bytes > s.most {
		s.RemoveOldest()
	}
}

// stock is all objects that are kept, by name.
type stock struct{ issuers, unproven, eks, crls *shelf }

func newStock() stock {
	return stock{
		issuers: newShelf(maxIssuers, maxIssuerBytes), unproven: newShelf(maxUnproven, maxUnprovenBytes),
		eks: newShelf(maxEKs, maxEKBytes), crls: newShelf(maxCRLs, maxCRLBytes),
	}
}

func (s *stock) all() []*shelf { return []*shelf{s.issuers, s.unproven, s.eks, s.crls} }

// shelf returns the shelf to which an object belongs.
func (s *stock) shelf(kind Kind, proven bool) *shelf {
	switch kind.base() {
	case CRL:
		return s.crls
	case EKCertificate:
		return s.eks
	}
	if proven {
		return s.issuers
	}
	return s.unproven
}

// get returns the object with a name, or nil, and counts that as a use.
func (s *stock) get(n name) *kept {
	for _, shelf := range s.all() {
		if k, ok := shelf.Get(n); ok {
			return k
		}
	}
	return nil
}

// put keeps k under a name, in place of the previous object.
func (s *stock) put(n name, k *kept) {
	s.drop(n)
	s.shelf(n.kind, k.proven).add(n, k)
}

// drop removes the object with a name.
func (s *stock) drop(n name) {
	for _, shelf := range s.all() {
		shelf.Remove(n)
	}
}
