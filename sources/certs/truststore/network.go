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

// maxRequests is the maximum number of certificates and CRLs that are fetched for one attestation,
// not counting those from services for EK certificates.
const maxRequests = 8

const (
	// leastWait is the shortest time that an attestation waits for an answer: it waits for half of
	// its remaining time, or for leastWait if that is longer.
	leastWait = 5 * time.Second
	// An attestation waits for renewWait if there is an old object that is still good.
	renewWait = fetch.Patience
	// If an attestation has waited for a host in vain for slowAnswer, it does not wait for that
	// host again if there is an old object that is still good; after deadAnswer, it does not wait
	// for the host at all, since the host has had enough time even to say no.
	slowAnswer, deadAnswer = time.Second, 4 * time.Second
)

var (
	errRequests = fmt.Errorf("more than %d certificates and CRLs would have to be fetched: "+
		"what has been fetched is kept for the next attempt", maxRequests)
	errDeadHost = errors.New("its host has just left another request unanswered")
)

// Fetch answers like Check, but requests what is missing: see sources.Fetcher. It makes at most 8
// requests, and one more for each of Config.Bases if Question.Leaf wants that; attestations that
// wait for the same URL share one request. If ctx has a deadline, each request may take half of the
// remaining time, but at least 5 seconds. Nothing is requested for a certificate that could not be
// accepted whoever has issued it.
func (s *Store) Fetch(ctx context.Context, q Question) (sources.Verdict, error) {
	asking, leave := context.WithCancel(ctx)
	hand := &inquiry{
		store: s.fetched, now: s.cfg.Now, answers: map[string]certs.Answer{}, waited: map[string]time.Duration{},
		arrived: make(chan arrival, maxRequests+len(s.cfg.Bases)),
	}
	defer hand.asked.Wait()
	defer leave() // the requests still in progress are not needed here
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

// learn tells the fetcher which URLs were useful and which were not.
func (s *Store) learn(found certs.Result) {
	for _, url := range found.Proven {
		s.fetched.Prove(url)
	}
	for _, url := range found.Doubted {
		s.fetched.Doubt(fetch.Issuer, url)
	}
}

// An inquiry is the certs.Hand of one attestation. For Check, it answers from the store alone.
type inquiry struct {
	store *fetch.Fetcher
	now   func() time.Time

	// answers are those that arrived in this attestation, or for which it stopped waiting, by the
	// ID of the Want. The zero Answer means that a request is in progress.
	answers map[string]certs.Answer
	arrived chan arrival
	asked   sync.WaitGroup

	mu       sync.Mutex // for waited
	requests int
	// waited is how long this attestation has waited for each host in vain, by kind: issuers' URLs
	// may be chosen by the machine, and must not use up the time for CRLs.
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

// kindOf returns the kind under which the store keeps what is wanted.
func kindOf(w certs.Want) fetch.Kind {
	kind := fetch.Kind(w.Kind) // both packages use the same names
	if w.CA != "" {
		kind = kind.Of(w.CA)
	}
	if w.Scope != "" {
		kind = kind.Of(w.Scope)
	}
	return kind
}

// staleness returns why there is nothing newer than an object, or nil if that is not so or there is
// no object.
func staleness(o *fetch.Object) error {
	if o == nil {
		return nil
	}
	return o.Stale
}

// good reports whether an object whose Until has passed may be used while a server is silent. A CRL
// that is no longer current may not: a slow server would admit machines that the next CRL lists.
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

// ask starts requests for what is wanted and has not been requested yet. It reports whether there
// is an answer already.
func (q *inquiry) ask(ctx context.Context, wants []certs.Want) (answered bool) {
	for _, w := range wants {
		id := w.ID()
		if _, ok := q.answers[id]; ok {
			continue
		}
		q.answers[id] = certs.Answer{} // it is in progress
		if a, ok := q.withoutAsking(w); ok {
			q.answers[id], answered = a, true
			continue
		}
		q.asked.Go(func() { q.arrived <- arrival{id, q.get(ctx, w)} })
	}
	return answered
}

// withoutAsking returns an answer if no request is to be made.
func (q *inquiry) withoutAsking(w certs.Want) (certs.Answer, bool) {
	q.mu.Lock()
	waited := q.waited[q.host(w)]
	q.mu.Unlock()
	if waited >= slowAnswer {
		old, _, _ := q.store.Cached(kindOf(w), w.URL, w.Read) // Look has found that it is not known
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

// host returns a key for the host that would be asked, and the kind of what it is asked for.
func (q *inquiry) host(w certs.Want) string {
	return string(w.Kind) + " " + q.store.Host(kindOf(w), w.URL)
}

// get makes a request, and waits as long as patience allows.
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
	if gaveUp || errors.Is(silence, fetch.ErrSilent) { // a host that says no may be asked again
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

// patience returns a context for one answer. It alone determines how long an attestation waits:
// half of the remaining time, so that a silent server leaves time to ask others, but no less than a
// slow server needs. If there is not that much time, ctx ends, and Find cannot tell. If there is an
// old object that is still good, the time is renewWait.
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

// newFetcher returns the fetcher of certificates and CRLs, or nil if nothing is to be fetched.
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
		Patience:  cfg.Patience,
	})
	if err != nil {
		return nil, fmt.Errorf("what is fetched: %w", err)
	}
	return f, nil
}

// Examine makes s read what a running server has, without disturbing the server: it reads the
// server's cache, whoever owns the file, and never writes it. It must be called before the first
// Load, and Watch must not be called.
func (s *Store) Examine(bool) {
	if s.fetched != nil {
		s.fetched.Examine()
	}
}

// loadFetched loads the cache, once. The fetcher keeps the error.
func (s *Store) loadFetched(ctx context.Context) {
	if s.fetched == nil || s.fetchedLoaded.Load() {
		return
	}
	if err := s.fetched.Load(ctx); err == nil || ctx.Err() == nil {
		s.fetchedLoaded.Store(true)
	}
}

// Watch implements sources.Watcher. It writes what is fetched to Config.CachePath until ctx ends.
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

// Close ends all requests, and the store makes no further ones. A caller that has called Watch and
// waited for it need not call Close.
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
