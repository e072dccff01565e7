// Package fetch fetches certificates and certificate revocation lists (CRLs) from web servers that
// certificates name, and keeps them.
//
// The names come from attesting machines, which may be attackers: only the operator decides, in
// [Config], which servers may be asked. Requests are limited in size, time and number, and so is
// what is kept. Failures have limits of their own.
//
// Nothing that is kept is trusted, neither on disk nor on its way: all of it passes through the
// caller's [Parse].
//
// To read the package: this file has its contract; policy.go and address.go say which servers may
// be asked, and request.go how; flight.go has the requests in progress and their callers; kept.go
// has what is kept, cache.go and record.go the cache file.
package fetch

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// A Kind is what is requested. It determines which servers may be asked and how long an answer may
// be, and is part of the name by which an answer is kept: what was fetched as one kind is never
// used as another.
type Kind string

// The kinds.
const (
	// Issuer are certificates of CAs, at a URL that a certificate names, on
	// Config.Hosts: at most 256 KiB.
	Issuer Kind = "issuer"
	// EKCertificate is the certificate of an EK, at a URL that was computed from
	// the EK, below one of Config.Bases: at most 64 KiB.
	EKCertificate Kind = "ek"
	// CRL is a revocation list at a URL that a certificate names, on
	// Config.Hosts: at most 4 MiB.
	CRL Kind = "crl"
)

// Of returns a kind for answers that must be kept apart from other answers at the same URL. For
// example, if Parse accepts only what one issuer has signed, CRL.Of(<hash of the issuer's key>)
// keeps a certificate that names another CA's CRL from spoiling that CRL for the other CA. whom
// must contain everything that Parse depends on besides the body.
func (k Kind) Of(whom string) Kind { return k + "/" + Kind(whom) }

// base returns the kind without what Of added.
func (k Kind) base() Kind {
	before, _, _ := strings.Cut(string(k), "/")
	return Kind(before)
}

// valid reports whether k is one of the kinds, with or without Of.
func (k Kind) valid() bool {
	return maxBody[k.base()] > 0 && len(k) <= maxKind && !strings.Contains(string(k), "\x00")
}

// maxKind is the maximum length of a kind, in bytes.
const maxKind = 256

var (
	// ErrNotFound means that the server has nothing at the URL: 404 or 410. It is remembered like
	// other failures.
	ErrNotFound = errors.New("the server has none (404 Not Found)")
	// ErrNotAsked means that a server was not asked, or not until it had answered, for a reason of
	// the Fetcher's own. It says nothing about the server or what it has, and is not remembered. A
	// caller for which a missing answer is a fact must not treat this error as one.
	ErrNotAsked = errors.New("the server was not asked: try again")
	// ErrSilent means that the server was asked and had enough time, but has not answered.
	ErrSilent = errors.New("the server has not answered yet")
)

// Config says which servers may be asked, and where answers are kept.
type Config struct {
	// Hosts are the servers that may be asked for what certificates name. Each is a host or
	// host:port, where the host is a name, an IPv4 address, or an IPv6 address in brackets. Without
	// a port, ports 80 and 443 are allowed, whatever the scheme. A name that resolves to an address
	// that is not public is not asked; an entry that is itself such an address is.
	Hosts []string
	// Bases are URLs below which EK certificates are. The operator has configured them, so their
	// addresses may be private.
	Bases []string
	// Mirror, if it is set, is a URL below which <host>/<path> is requested instead of every URL on
	// Hosts, where the host has :port unless that is the scheme's. The operator has configured it,
	// too.
	Mirror string
	// CachePath is a bbolt file in which answers survive a restart. If it is empty, they are kept
	// only in memory.
	CachePath string
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
	// Dial makes the connections in a test, to any address. If it is nil, the network is used, with
	// the restrictions on addresses described above.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Patience is how long a request may be in progress before its server counts as silent; if it is
	// zero, the constant Patience. Only tests set it.
	Patience time.Duration
}

// Parse reads a body and returns its value and the time until which it may be kept (zero: the
// default). If it returns an error, the request has failed. The result must depend only on the
// body, the Kind and the URL, since the value is shared. Parse is also called with bodies from the
// disk. It must not change the body or keep a part of it to which it writes. A panic counts as an
// error.
type Parse func(body []byte) (value any, until time.Time, err error)

// A Successor is a value that restricts what it may replace: Succeed returns an error if it must
// not replace held, the value that has been kept so far. The two are compared however old held is,
// and across restarts. An answer for which Succeed returns an error counts as a failure, and held
// stays in use. Succeed must not wait for anything.
type Successor interface {
	Succeed(held any) error
}

// An Object is an answer that was accepted. It is shared and must not be changed.
type Object struct {
	Value          any
	Body           []byte
	Fetched, Until time.Time
	// Stale says why there is nothing newer although Until has passed: it is the last attempt's
	// failure, or wraps ErrSilent or ErrNotAsked. It is nil before Until. The validity times in
	// certificates and CRLs are for the caller to check, whether Stale is set or not.
	Stale error
}

// Patience is how long a request may be in progress before its server counts as silent.
const Patience = 2 * time.Second

// A Fetcher fetches and keeps answers. It is safe for concurrent use.
//
// It makes at most 4 connections to a host at a time, one for each request, which may take 10
// seconds from the moment when the connection is being made. It repeats a request once if the
// connection or the server fails, and follows up to 3 redirects, on the same host only. It keeps
// each object for at most 90 days and, of each kind, those that were used last: 2048 CRLs, 16,000
// EK certificates, 2048 issuers for which Prove was called, and 256 other issuers. Each of these
// four is also limited in bytes, and all of them together take at most 260 MiB of memory. It
// remembers 4096 failures: for ten minutes, that a server has nothing or something other than what
// was asked for; for one minute, and for up to ten if it goes on, that a server does not answer. It
// uses no proxy, and the system's roots for https.
type Fetcher struct {
	policy policy
	path   string // of the cache; empty if there is none
	// anyOwner makes the cache count whoever owns it.
	anyOwner bool
	now      func() time.Time

	dial                    dialFunc
	transport, ownTransport *http.Transport
	// These are the constants, except in tests, which use shorter times.
	timeout, retryPause, patience time.Duration

	// mu is only held briefly, and never while waiting for anything.
	mu       sync.Mutex
	objects  stock
	failures *simplelru.LRU[name, *failure]
	flights  map[name]*flight
	running  bool // whether Run is running
	closed   bool
	// changed is true if the cache file does not hold what is in memory, and unread is true if its
	// content is not known.
	changed, unread bool
	cacheErr        error

	wake    chan struct{} // tells Run that changed is set
	writing sync.Mutex    // held while the file is written
	work    sync.WaitGroup
}

// New checks the configuration. It opens nothing and starts nothing.
func New(cfg Config) (*Fetcher, error) {
	p, err := newPolicy(cfg)
	if err != nil {
		return nil, err
	}
	f := &Fetcher{
		policy: p, path: cfg.CachePath, now: cfg.Now, dial: cfg.Dial,
		timeout: requestTimeout, retryPause: retryPause, patience: cmp.Or(cfg.Patience, Patience),
		objects: newStock(), failures: newLRU[*failure](maxFailures, nil),
		flights: map[name]*flight{}, wake: make(chan struct{}, 1),
	}
	if f.now == nil {
		f.now = time.Now
	}
	f.connect(nil, nil)
	return f, nil
}

// connect makes the transports, with the system's resolver and roots if these are nil.
func (f *Fetcher) connect(resolver *net.Resolver, roots *x509.CertPool) {
	f.transport = newTransport(false, f.dial, resolver, roots, f.now)
	f.ownTransport = newTransport(true, f.dial, resolver, roots, f.now)
}

// Allowed returns the canonical form of a URL that a certificate names, if it may be requested as
// Issuer or CRL, and otherwise an error that says why not. URLs that differ only in the case of the
// host, in a port that is the scheme's default, in a fragment, or in spaces around them have the
// same canonical form.
func (f *Fetcher) Allowed(raw string) (canonical string, err error) { return f.policy.allowed(raw) }

// Host returns the host that would be asked for an allowed URL, which is the mirror's if there is a
// mirror.
func (f *Fetcher) Host(kind Kind, url string) string {
	t, err := f.policy.target(kind, url)
	if err != nil {
		return ""
	}
	return t.host()
}

// Cached returns what is kept. If known is true, no server need be asked: there is an object, or a
// remembered failure (err), or both (the failure is then in Stale). If known is false, there may be
// an object whose Until has passed; its Stale wraps ErrSilent if a request for it is in progress
// and the server is silent, and ErrNotAsked otherwise.
//
// It does not wait. It calls parse if an object has come from the disk and has not been used yet,
// and drops the object if parse refuses it.
func (f *Fetcher) Cached(kind Kind, url string, parse Parse) (o *Object, known bool, err error) {
	n := name{kind, url}
	f.parseKept(n, parse)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(n)
}

// A KeptObject is an object and the URL where it was found.
type KeptObject struct {
	URL   string
	Value any
}

// Kept returns all objects that are kept with the kinds family.Of(…), whatever their age and URL.
// It asks no server, and leaves out objects from the disk that parse refuses.
func (f *Fetcher) Kept(family Kind, parse Parse) []KeptObject {
	var names []name
	prefix := string(family.Of(""))
	f.mu.Lock()
	for _, n := range f.objects.shelf(family, false).Keys() {
		if strings.HasPrefix(string(n.kind), prefix) {
			names = append(names, n)
		}
	}
	f.mu.Unlock()
	var all []KeptObject
	for _, n := range names {
		if o, err := f.instead(n, ErrSilent, parse); err == nil {
			all = append(all, KeptObject{n.url, o.Value})
		}
	}
	return all
}

// Doubt reports that an object is not what was expected: for example, an issuer has expired or has
// not signed the certificate that names it. It is then fetched again, but not before it is ten
// minutes old; if that fails, it stays in use.
func (f *Fetcher) Doubt(kind Kind, url string) {
	f.change(name{kind, url}, func(k *kept) bool {
		until := k.fetched.Add(doubtAge)
		sooner := until.Before(k.until)
		if sooner {
			k.until = until
		}
		return sooner
	})
}

// Prove reports that the object at an Issuer's URL was useful: it has signed a certificate, and
// chains to a trusted CA. What is kept for that URL, now and later, is not evicted because of
// objects that were not useful.
func (f *Fetcher) Prove(url string) {
	f.change(name{Issuer, url}, func(k *kept) bool {
		is := k.proven
		k.proven = true
		return !is
	})
}

// change replaces the object with this name by the result of edit, if edit reports that it has
// changed something.
func (f *Fetcher) change(n name, edit func(*kept) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := f.objects.get(n)
	if k == nil {
		return
	}
	if next := *k; edit(&next) {
		f.objects.put(n, &next)
		f.touch()
	}
}

// CacheError returns the error of the last attempt to read or write the cache file, or nil.
func (f *Fetcher) CacheError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cacheErr
}

// succeed returns an error if a value must not replace another one.
func succeed(value, held any) (err error) {
	successor, ok := value.(Successor)
	if !ok {
		return nil
	}
	defer recovered(&err)
	return successor.Succeed(held)
}

// recovered turns a panic into an error. It must be deferred.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
	}
}

// guarded calls parse and turns a panic into an error.
func guarded(parse Parse, body []byte) (value any, until time.Time, err error) {
	defer recovered(&err)
	value, until, err = parse(body)
	if err != nil {
		return nil, time.Time{}, err
	}
	return value, until, nil
}
