package truststore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// maxRequests is the number of certificates and CRLs that one attestation has fetched, those
// of services for EK certificates not counted.
const maxRequests = 8

const (
	// leastWait is how long an attestation waits for an answer if half of the time that it
	// has left would be less.
	leastWait = 5 * time.Second
	// An attestation waits for renewWait if there is something old that is still good.
	renewWait = fetch.Patience
	// If a host has kept an attestation waiting for slowAnswer in vain, that attestation
	// does not wait for it again if there is something old that is still good; after
	// deadAnswer not at all: the host has had as much time as it needs to say no.
	slowAnswer, deadAnswer = time.Second, 4 * time.Second
)

var (
	errRequests = fmt.Errorf("more than %d certificates and CRLs would have to be fetched: "+
		"what has been fetched is kept for the next attempt", maxRequests)
	errDeadHost = errors.New("its host has just left another request unanswered")
)

// Fetch answers as Check does, and asks for what is missing: see sources.Fetcher. It makes
// at most 8 requests, besides one for each of Config.Bases if Question.Leaf wants it;
// attestations that wait for the same URL share one request. If ctx has a deadline, each may take half of what is left
// until then, and 5 seconds at least. Nothing is asked for a certificate that could
// not vouch whoever has issued it.
func (s *Store) Fetch(ctx context.Context, q Question) (sources.Verdict, error) {
	asking, leave := context.WithCancel(ctx)
	hand := &inquiry{
		store: s.fetched, now: s.cfg.Now, answers: map[string]certs.Answer{}, waited: map[string]time.Duration{},
		arrived: make(chan arrival, maxRequests+len(s.cfg.Bases)),
	}
	defer hand.asked.Wait()
	defer leave() // what is still under way matters to nobody here
	for {
		v, wants, err := s.attempt(ctx, q, hand)
		if err != nil || len(wants) == 0 {
			return v, err
		}
		if hand.ask(asking, wants) {
			continue
		}
		select {
		case a := <-hand.arrived:
			hand.answers[a.id] = a.answer
		case <-ctx.Done():
			return sources.Verdict{}, fmt.Errorf("find the issuers of the %v: %w", s.profile, ctx.Err())
		}
	}
}

// learn tells the fetcher what was of use and what was not.
func (s *Store) learn(found certs.Result) {
	for _, url := range found.Proven {
		s.fetched.Prove(url)
	}
	for _, url := range found.Doubted {
		s.fetched.Doubt(fetch.Issuer, url)
	}
}

// An inquiry is what one attestation looks up: it is what certs.Find has at hand. In Check
// it answers from the store alone.
type inquiry struct {
	store *fetch.Fetcher
	now   func() time.Time

	// answers are those that came in this attestation, or whose wait was given up, by what
	// was wanted. They are nil while a request is under way.
	answers map[string]certs.Answer
	arrived chan arrival
	asked   sync.WaitGroup

	mu       sync.Mutex // for waited
	requests int
	// waited is for how long hosts have kept this attestation waiting in vain, by kind:
	// issuers' URLs may be the machine's own, and must not spend what CRLs are given.
	waited map[string]time.Duration
}

// An arrival is an answer to a request.
type arrival struct {
	id     string
	answer certs.Answer
}

// Allowed implements certs.Hand.
func (q *inquiry) Allowed(url string) (string, error) { return q.store.Allowed(url) }

// Look implements certs.Hand.
func (q *inquiry) Look(w certs.Want) (certs.Answer, bool) {
	if a, ok := q.answers[w.ID()]; ok {
		return a, a.Value != nil || a.Err != nil
	}
	object, known, err := q.store.Cached(kindOf(w), w.URL, w.Read)
	switch {
	case err != nil:
		return certs.Answer{Err: fmt.Errorf("an earlier attempt failed: %w", err)}, true
	case known, errors.Is(staleness(object), fetch.ErrSilent) && q.good(object):
		return answerOf(object), true
	}
	return certs.Answer{}, false
}

// CRLs implements certs.Hand.
func (q *inquiry) CRLs(w certs.Want) (all []certs.HeldCRL) {
	for _, k := range q.store.Kept(kindOf(w), w.Read) {
		all = append(all, certs.HeldCRL{URL: k.URL, Value: k.Value})
	}
	return all
}

// kindOf returns the name by which the store keeps what is wanted.
func kindOf(w certs.Want) fetch.Kind {
	kind := fetch.Kind(w.Kind) // both packages call them the same
	if w.CA != "" {
		kind = kind.Of(w.CA)
	}
	if w.Scope != "" {
		kind = kind.Of(w.Scope)
	}
	return kind
}

// staleness returns why there is nothing newer than an object; nil if there is none.
func staleness(o *fetch.Object) error {
	if o == nil {
		return nil
	}
	return o.Stale
}

// good reports whether an object whose time is over will do while a server is silent. A CRL
// that has run out will not: a server that is slow would let in whom the next one lists.
func (q *inquiry) good(o *fetch.Object) bool {
	if o == nil {
		return false
	}
	crl, ok := o.Value.(*certs.CRL)
	return !ok || crl.Current(q.now())
}

func answerOf(o *fetch.Object) certs.Answer {
	return certs.Answer{Value: o.Value, Err: o.Stale, NotAsked: errors.Is(o.Stale, fetch.ErrNotAsked)}
}

// ask begins to ask for what is wanted and was not asked for yet. It reports whether there
// is an answer already.
func (q *inquiry) ask(ctx context.Context, wants []certs.Want) (answered bool) {
	for _, w := range wants {
		id := w.ID()
		if _, ok := q.answers[id]; ok {
			continue
		}
		q.answers[id] = certs.Answer{} // it is under way
		if a, ok := q.withoutAsking(w); ok {
			q.answers[id], answered = a, true
			continue
		}
		q.asked.Go(func() { q.arrived <- arrival{id, q.get(ctx, w)} })
	}
	return answered
}

// withoutAsking answers if nobody is asked.
func (q *inquiry) withoutAsking(w certs.Want) (certs.Answer, bool) {
	q.mu.Lock()
	waited := q.waited[q.host(w)]
	q.mu.Unlock()
	if waited >= slowAnswer {
		old, _, _ := q.store.Cached(kindOf(w), w.URL, w.Read) // Look has seen that it is not known
		switch {
		case old != nil && (waited >= deadAnswer || q.good(old)):
			return certs.Answer{Value: old.Value, Err: fmt.Errorf("fetch %q: %w", w.URL, errDeadHost)}, true
		case waited >= deadAnswer:
			return certs.Answer{Err: fmt.Errorf("fetch %q: %w", w.URL, errDeadHost)}, true
		}
	}
	if w.Kind == certs.EKCertificate {
		return certs.Answer{}, false
	}
	if q.requests++; q.requests > maxRequests {
		return certs.Answer{Err: errRequests, NotAsked: true}, true
	}
	return certs.Answer{}, false
}

// host names the host that is asked, and for what.
func (q *inquiry) host(w certs.Want) string {
	return string(w.Kind) + " " + q.store.Host(kindOf(w), w.URL)
}

// get asks, and waits as long as one answer may take.
func (q *inquiry) get(ctx context.Context, w certs.Want) (a certs.Answer) {
	defer func() {
		if p := recover(); p != nil {
			a = certs.Answer{Err: fmt.Errorf("fetch %q: panic: %v", w.URL, p), NotAsked: true}
		}
	}()
	begun := time.Now()
	within, cancel := q.patience(ctx, w)
	defer cancel()
	object, err := q.store.Get(within, kindOf(w), w.URL, w.Read)
	silence := cmp.Or(err, staleness(object))
	gaveUp := q.good(object) && within.Err() != nil && ctx.Err() == nil
	if gaveUp || errors.Is(silence, fetch.ErrSilent) { // a host that says no may have the next one
		q.mu.Lock()
		q.waited[q.host(w)] = max(q.waited[q.host(w)], time.Since(begun))
		q.mu.Unlock()
	}
	if err != nil {
		return certs.Answer{
			Err: fmt.Errorf("fetch %q: %w", w.URL, err), NotAsked: errors.Is(err, fetch.ErrNotAsked),
		}
	}
	return answerOf(object)
}

// patience returns a context for one answer: all that is said here about how long an
// attestation waits. It is half of the time that there is, so that a server that does not
// answer leaves some for what has to be asked of others. There is never less than would do
// for a server that answers slowly: if there is no time for that, it is ctx that ends, and
// nothing can be told. If there is something old that is still good, it is renewWait.
func (q *inquiry) patience(ctx context.Context, w certs.Want) (context.Context, context.CancelFunc) {
	if old, _, _ := q.store.Cached(kindOf(w), w.URL, w.Read); q.good(old) {
		return context.WithTimeout(ctx, renewWait)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, max(leastWait, time.Until(deadline)/2))
}

// newFetcher returns what fetches and keeps certificates and CRLs, or nil if
// nothing is to be fetched.
func newFetcher(cfg Config) (*fetch.Fetcher, error) {
	if !cfg.fetches() {
		return nil, nil //nolint:nilnil // nothing is to be fetched
	}
	f, err := fetch.New(fetch.Config{
		Hosts:     slices.Clone(cfg.AIAHosts),
		Bases:     slices.Clone(cfg.Bases),
		Mirror:    cfg.MirrorURL,
		CachePath: cfg.CachePath,
		Now:       cfg.Now,
		Dial:      cfg.Dial,
	})
	if err != nil {
		return nil, fmt.Errorf("what is fetched: %w", err)
	}
	return f, nil
}

// Examine makes s a store that examines what a server has beside the server: it reads the
// server's cache, whoever owns the file, and never writes it. It must be called before the first
// Load, and Watch must not be called.
func (s *Store) Examine(bool) {
	if s.fetched != nil {
		s.fetched.Examine()
	}
}

// loadFetched loads what was fetched before, once. The fetcher itself keeps why it
// could not.
func (s *Store) loadFetched(ctx context.Context) {
	if s.fetched == nil || s.fetchedLoaded.Load() {
		return
	}
	if err := s.fetched.Load(ctx); err == nil || ctx.Err() == nil {
		s.fetchedLoaded.Store(true)
	}
}

// Watch implements sources.Watcher: it writes what is fetched to Config.CachePath until
// ctx ends.
func (s *Store) Watch(ctx context.Context, _ func()) (err error) {
	if s.fetched == nil {
		<-ctx.Done()
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("keep what is fetched: panic: %v", p)
		}
	}()
	if err := s.fetched.Run(ctx); err != nil {
		return fmt.Errorf("keep what is fetched: %w", err)
	}
	return nil
}

// Close has the store ask nobody any more. Who calls Watch to its end need not call it.
func (s *Store) Close() error {
	if s.fetched == nil {
		return nil
	}
	return s.fetched.Close() //nolint:wrapcheck // it says what it is
}

// cacheWarnings says what is wrong with the cache.
func (s *Store) cacheWarnings() []string {
	if s.fetched == nil {
		return nil
	}
	if err := s.fetched.CacheError(); err != nil {
		return []string{err.Error()}
	}
	return nil
}
