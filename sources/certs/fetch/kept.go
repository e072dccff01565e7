package fetch

import (
	"cmp"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// How much is kept of what was not accepted.
const (
	// maxFailures is how many failures are kept. A thousand URLs that lead nowhere push
	// out nothing that is of use.
	maxFailures = 4096
	// maxProblem is the length of the text of a failure, in bytes.
	maxProblem = 300
)

// What is kept stands on shelves by what it takes to have it kept, so that what
// anybody can cause pushes nothing out that took more. Each shelf has a bound on objects,
// and a bound on bytes of memory, as costOf counts them.
const (
	// Issuers that Prove was told of.
	maxIssuers, maxIssuerBytes = 2048, 32 << 20
	// Other issuers. Whoever attests can fill this one, with any certificate of a
	// CA that is at a host that may be asked, by any number of URLs.
	maxUnproven, maxUnprovenBytes = 256, 4 << 20
	// EK certificates, which services have for EKs that were proven.
	maxEKs, maxEKBytes = 16_000, 96 << 20
	// CRLs, which CAs have signed that somebody trusts.
	maxCRLs, maxCRLBytes = 2048, 128 << 20
)

// How long it is kept.
const (
	// defaultAge is how long an object is kept whose Parse says nothing, and
	// maxAge how long whatever it says.
	defaultAge, maxAge = 30 * 24 * time.Hour, 90 * 24 * time.Hour
	// minAge is how long it is kept at least.
	minAge = time.Minute
	// maxStaleAge is how long it goes on beyond that, if asking again fails.
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
	// value is what Parse has made of the body. parsed is false if the body
	// has come from the disk and was not used yet.
	value  any
	parsed bool
	// proven is whether Prove was told of its name, for an issuer.
	proven bool
}

// failure is why there was none, as an error. It is never changed, only replaced.
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

func (fl *failure) Error() string { return fl.problem }

// Is reports what the failure is besides its text.
func (fl *failure) Is(target error) bool {
	return target == ErrNotFound && fl.notFound || target == ErrSilent && fl.silent
}

// untilOf returns until when an answer is kept that was fetched at some time.
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

// as returns the object for the caller. stale is why there is nothing newer.
func (k *kept) as(stale error) *Object {
	return &Object{Value: k.value, Body: k.body, Fetched: k.fetched, Until: k.until, Stale: stale}
}

// find returns what Cached does; it passes over what parseKept has not parsed. The caller
// holds f.mu.
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

// old returns the object that is kept and was parsed, though its time may be over; nil if it
// is over for too long. A CRL is kept at any age and by any clock: what it lists stays
// revoked, and whoever sets the clock must not bring that back. The caller holds f.mu.
func (f *Fetcher) old(n name) *kept {
	k := f.objects.get(n)
	if k == nil || !k.parsed || n.kind.base() != CRL && f.now().After(k.until.Add(maxStaleAge)) {
		return nil
	}
	return k
}

// instead returns the object that is kept although its time may be over, with why there is
// nothing newer; if there is none, why is the error.
func (f *Fetcher) instead(n name, why error, parse Parse) (*Object, error) {
	f.parseKept(n, parse)
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.old(n); k != nil {
		return k.as(why), nil
	}
	return nil, why
}

// parseKept parses what is kept, if it has come from the disk and was not used yet. What
// parse refuses is not kept any more.
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

// newLRU returns a map of a few items: what was used least recently goes first.
func newLRU[V any](items int, gone func(name, V)) *simplelru.LRU[name, V] {
	l, err := simplelru.NewLRU(items, gone)
	if err != nil { // the number is a constant
		panic(err)
	}
	return l
}

// costOf returns the memory that an object takes, in bytes, or more. A certificate
// of 340 bytes takes 3 KiB once it is parsed, and an issuer's body may have many of
// these; a CRL in PEM is there twice.
func costOf(n name, k *kept) int64 {
	const parsed = 4 << 10
	body := int64(len(k.body))
	cost := 2*body + parsed
	if n.kind.base() == Issuer {
		cost = max(cost, 10*body)
	}
	return cost + int64(len(n.url)+len(n.kind))
}

// A shelf is a map of objects that is bounded in bytes, too.
type shelf struct {
	*simplelru.LRU[name, *kept]
	bytes, most int64
}

func newShelf(objects int, most int64) *shelf {
	s := &shelf{most: most}
	s.LRU = newLRU(objects, func(n name, k *kept) { s.bytes -= costOf(n, k) })
	return s
}

// add keeps k by a name that is not there yet.
func (s *shelf) add(n name, k *kept) {
	s.bytes += costOf(n, k)
	s.Add(n, k)
	for s.bytes > s.most {
		s.RemoveOldest()
	}
}

// stock is what was accepted, by name.
type stock struct{ issuers, unproven, eks, crls *shelf }

func newStock() stock {
	return stock{
		issuers: newShelf(maxIssuers, maxIssuerBytes), unproven: newShelf(maxUnproven, maxUnprovenBytes),
		eks: newShelf(maxEKs, maxEKBytes), crls: newShelf(maxCRLs, maxCRLBytes),
	}
}

func (s *stock) all() []*shelf { return []*shelf{s.issuers, s.unproven, s.eks, s.crls} }

// shelf returns where an object is to be.
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

// get returns what is kept by a name, or nil, and counts that as its use.
func (s *stock) get(n name) *kept {
	for _, shelf := range s.all() {
		if k, ok := shelf.Get(n); ok {
			return k
		}
	}
	return nil
}

// put keeps k by a name, in place of what was.
func (s *stock) put(n name, k *kept) {
	s.drop(n)
	s.shelf(n.kind, k.proven).add(n, k)
}

// drop removes what is kept by a name.
func (s *stock) drop(n name) {
	for _, shelf := range s.all() {
		shelf.Remove(n)
	}
}
