package ekca

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
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

// Fetch implements sources.Fetcher: it answers as Check does, and asks for what is
// missing. It makes at most 8 requests, besides one to each service for EK
// certificates if the machine has sent none; attestations that wait for the
// same URL share one request. If ctx has a deadline, each may take half of what is left
// until then, and 5 seconds at least. Nothing is asked for a certificate that could
// not vouch whoever has issued it.
func (s *Source) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	asking, leave := context.WithCancel(ctx)
	q := &inquiry{
		store: s.store, now: s.cfg.Now, answers: map[string]certs.Answer{}, waited: map[string]time.Duration{},
		arrived: make(chan arrival, maxRequests+len(s.services)),
	}
	defer q.asked.Wait()
	defer leave() // what is still under way matters to nobody here
	for {
		v, wants, err := s.attempt(ctx, ev, q)
		if err != nil || len(wants) == 0 {
			return v, err
		}
		if q.ask(asking, wants) {
			continue
		}
		select {
		case a := <-q.arrived:
			q.answers[a.id] = a.answer
		case <-ctx.Done():
			return sources.Verdict{}, fmt.Errorf("find the issuers of the EK certificate: %w", ctx.Err())
		}
	}
}

// learn tells the store what was of use and what was not.
func (s *Source) learn(found certs.Result) {
	for _, url := range found.Proven {
		s.store.Prove(url)
	}
	for _, url := range found.Doubted {
		s.store.Doubt(fetch.Issuer, url)
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

// A service has the EK certificates that a vendor's TPMs do not carry.
type service struct {
	name string // a key of Config.EKCertificateURLs
	base string
}

// services returns the configured services in the order of their names.
func services(urls map[string]string) []service {
	all := make([]service, 0, len(urls))
	for _, name := range slices.Sorted(maps.Keys(urls)) {
		all = append(all, service{name, urls[name]})
	}
	return all
}

// fromServices returns the certificate for an EK that a service has, or why there is none.
// All are asked at once, and who has it first is believed: the certificate is one for this
// key, and who has signed it decides.
func (s *Source) fromServices(
	ek crypto.PublicKey, hand *inquiry,
) (cert *x509.Certificate, why string, wants []certs.Want, err error) {
	var failures []error
	for _, service := range s.services {
		w, ok := certs.WantEK(service.name, service.base, ek, s.cfg.Now())
		if !ok {
			continue
		}
		a, ok := hand.Look(w)
		cert, isCert := a.Value.(*x509.Certificate)
		switch {
		case !ok:
			wants = append(wants, w)
		case isCert && certs.SameKey(cert.PublicKey, ek):
			return cert, "", nil, nil
		case isCert:
			failures = append(failures, fmt.Errorf("the service %q: the certificate is for another key", service.name))
		case !errors.Is(a.Err, fetch.ErrNotFound):
			failures = append(failures, fmt.Errorf("the service %q: %w", service.name, a.Err))
		}
	}
	if err := errors.Join(failures...); err != nil && len(wants) == 0 {
		return nil, "", nil, fmt.Errorf("find the EK certificate: %w", err)
	}
	if len(s.services) == 0 {
		return nil, "there is no EK certificate", nil, nil
	}
	return nil, "there is no EK certificate, and no service has one for the EK", wants, nil
}

// newStore returns what fetches and keeps certificates and CRLs, or nil if
// nothing is to be fetched.
func newStore(cfg Config) (*fetch.Fetcher, error) {
	if len(cfg.AIAHosts) == 0 && len(cfg.EKCertificateURLs) == 0 {
		return nil, nil //nolint:nilnil // nothing is to be fetched
	}
	store, err := fetch.New(storeConfig(cfg))
	if err != nil {
		return nil, fmt.Errorf("what is fetched: %w", err)
	}
	return store, nil
}

func storeConfig(cfg Config) fetch.Config {
	return fetch.Config{
		Hosts:     slices.Clone(cfg.AIAHosts),
		Bases:     slices.Sorted(maps.Values(cfg.EKCertificateURLs)),
		Mirror:    cfg.MirrorURL,
		CachePath: cfg.CachePath,
		Now:       cfg.Now,
	}
}

// loadStore loads what was fetched before, once. The store itself keeps why it
// could not.
func (s *Source) loadStore(ctx context.Context) {
	if s.store == nil || s.storeLoaded.Load() {
		return
	}
	if err := s.store.Load(ctx); err == nil || ctx.Err() == nil {
		s.storeLoaded.Store(true)
	}
}

// Watch implements sources.Watcher: it writes what is fetched to Config.CachePath until
// ctx ends.
func (s *Source) Watch(ctx context.Context, _ func()) (err error) {
	if s.store == nil {
		<-ctx.Done()
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("keep what is fetched: panic: %v", p)
		}
	}()
	if err := s.store.Run(ctx); err != nil {
		return fmt.Errorf("keep what is fetched: %w", err)
	}
	return nil
}

// storeWarnings says what is wrong with the cache.
func (s *Source) storeWarnings() []string {
	if s.store == nil {
		return nil
	}
	if err := s.store.CacheError(); err != nil {
		return []string{err.Error()}
	}
	return nil
}
