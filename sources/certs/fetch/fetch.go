// Package fetch gets certificates and certificate revocation lists (CRLs)
// from web servers that certificates name, and keeps them.
//
// The names are those of whoever attests, and may be an attacker's: the operator alone
// decides who may be asked, in [Config]. What is asked is bounded in size, time and
// number, and what is kept is bounded too, failures by themselves.
//
// Nothing that is kept is trusted, on the disk as little as on its way: all of it
// passes through the caller's [Parse].
//
// To read the package: here is its contract; policy.go and address.go say who may be
// asked, request.go how; flight.go has the requests under way and who waits for them;
// kept.go what is kept, cache.go and record.go the file of it.
package fetch

import (
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

// A Kind is what is asked for. It decides who may be asked and how long an answer
// may be, and is part of the name by which an answer is kept: what was fetched as
// one kind never serves as another.
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

// Of returns the kind for answers that another answer at the same URL must not
// stand for: CRL.Of(<hash of the issuer's key>), say, if Parse accepts what
// that issuer has signed, so that a certificate that names another CA's CRL does
// not spoil it for that CA. All that Parse looks at beside the body has to be in
// it.
func (k Kind) Of(whom string) Kind { return k + "/" + Kind(whom) }

// base returns the kind without what Of has added.
func (k Kind) base() Kind {
	before, _, _ := strings.Cut(string(k), "/")
	return Kind(before)
}

// valid reports whether k is one of the kinds, by Of or not.
func (k Kind) valid() bool {
	return maxBody[k.base()] > 0 && len(k) <= maxKind && !strings.Contains(string(k), "\x00")
}

// maxKind is the length of a kind, in bytes.
const maxKind = 256

var (
	// ErrNotFound is the answer of a server that has nothing at the URL: 404 or 410.
	// It is kept, as other failures are.
	ErrNotFound = errors.New("the server has none (404 Not Found)")
	// ErrNotAsked is the error if a server was not asked, or not until it has
	// answered, for a reason of the Fetcher's own. It says nothing about the server or
	// what that has, and is not remembered: a caller that would take a missing answer for
	// a fact must not take this error for it.
	ErrNotAsked = errors.New("the server was not asked: try again")
	// ErrSilent is the error if the server was asked, had time enough, and has not
	// answered.
	ErrSilent = errors.New("the server has not answered yet")
)

// Config is who may be asked, and where answers are kept.
type Config struct {
	// Hosts may be asked for what certificates name: each a host or host:port, a
	// name or an IP address, [v6]:port. Without a port it is 80 and 443, whatever
	// the scheme. A name that resolves to an address that is not public is not
	// asked; an entry that is such an address itself is.
	Hosts []string
	// Bases are URLs below which EK certificates are. They are the operator's own
	// words: their addresses may be private.
	Bases []string
	// Mirror, if it is set, is a URL below which <host>/<path> is asked
	// for instead of every URL on Hosts, the host with :port if that is not
	// the scheme's. It is the operator's own, too.
	Mirror string
	// CachePath is a bbolt file that keeps answers for after a restart; if it
	// is empty, memory alone does.
	CachePath string
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
	// Dial makes the connections of a test, wherever it likes. If it is nil,
	// the network does, and addresses are as said above.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Parse reads a body and returns its value and until when it may be kept; the
// default if that is zero. What it returns an error for is a failure. It
// depends on the body alone (for one Kind and URL), since its value is shared, and
// is also called with bodies from the disk. It must not change the body or keep a
// part of it that it writes to. A panic is an error.
type Parse func(body []byte) (value any, until time.Time, err error)

// A Successor is a value that not every one may follow: Succeed returns why it must
// not take the place of held, the value that is kept so far, or nil. What was kept
// is compared however old it is, and over restarts. An answer with an error counts
// as a failure, and what is kept goes on. Succeed waits for nothing.
type Successor interface {
	Succeed(held any) error
}

// An Object is an answer that was accepted. It is shared: nobody changes it.
type Object struct {
	Value          any
	Body           []byte
	Fetched, Until time.Time
	// Stale is why there is nothing newer although Until has passed: the last
	// attempt has failed, or wraps ErrSilent or ErrNotAsked. Nil before that. What
	// certificates and CRLs say of their own validity is for the caller to look at,
	// stale or not.
	Stale error
}

// Patience is how long a request may be under way before its server counts as silent.
const Patience = 2 * time.Second

// A Fetcher asks and keeps. It is safe for concurrent use.
//
// It has 4 connections to a host at once, one for each request, which has 10 seconds from
// the moment that the connection is being made. It makes a request again if the connection
// or the server fails, and follows 3 redirects, on the same host only. It keeps each object
// for 90 days at most, and of each kind those that were used last: 2048 CRLs, 16,000 EK
// certificates, 2048 issuers that Prove was told of and 256 others; for each of these four
// there is a bound in bytes as well, and all of them together take 260 MiB of memory at
// most. It keeps 4096 failures: that the server has none, or something else than what was
// asked for, for ten minutes; that it does not answer for one minute, and for longer up to
// ten if it goes on. It asks nobody through a proxy, and for https takes the system's roots.
type Fetcher struct {
	policy policy
	path   string // of the cache; empty if there is none
	// anyOwner lets the cache count whoever owns it.
	anyOwner bool
	now      func() time.Time

	dial                    dialFunc
	transport, ownTransport *http.Transport
	// The constants; tests are in more of a hurry.
	timeout, retryPause, patience time.Duration

	// mu is held for moments only, and never while something is waited for.
	mu       sync.Mutex
	objects  stock
	failures *simplelru.LRU[name, *failure]
	flights  map[name]*flight
	running  bool // Run is at work
	closed   bool
	// changed says that the cache file does not hold what memory does, and unread
	// that it is not known what it holds.
	changed, unread bool
	cacheErr        error

	wake    chan struct{} // tells Run that there is something in changed
	writing sync.Mutex    // is held while the file is written
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
		timeout: requestTimeout, retryPause: retryPause, patience: Patience,
		objects: newStock(), failures: newLRU[*failure](maxFailures, nil),
		flights: map[name]*flight{}, wake: make(chan struct{}, 1),
	}
	if f.now == nil {
		f.now = time.Now
	}
	f.connect(nil, nil)
	return f, nil
}

// connect makes the transports; by the system's resolver and roots if these are nil.
func (f *Fetcher) connect(resolver *net.Resolver, roots *x509.CertPool) {
	f.transport = newTransport(false, f.dial, resolver, roots, f.now)
	f.ownTransport = newTransport(true, f.dial, resolver, roots, f.now)
}

// Allowed returns the canonical form of a URL that a certificate names and that
// may be asked for as Issuer or CRL, or why it may not. Two URLs that differ
// in upper and lower case of the host, in a port that is the scheme's, in a
// fragment or in spaces around them have one form.
func (f *Fetcher) Allowed(raw string) (canonical string, err error) { return f.policy.allowed(raw) }

// Host returns the host that would be asked for an allowed URL: the mirror's, if
// there is one.
func (f *Fetcher) Host(kind Kind, url string) string {
	t, err := f.policy.target(kind, url)
	if err != nil {
		return ""
	}
	return t.host()
}

// Cached returns what is kept. If it is known, nobody need be asked: there is an object, or
// the failure that is remembered (err), or both (Stale is the failure then). If it is not
// known, there may be an object whose time is over; its Stale is ErrSilent if it is being
// asked for and the server is silent, and ErrNotAsked otherwise.
//
// It waits for nobody; it calls parse if an object has come from the disk and was not
// used yet, and counts the object as not kept if parse refuses it.
func (f *Fetcher) Cached(kind Kind, url string, parse Parse) (o *Object, known bool, err error) {
	n := name{kind, url}
	f.parseKept(n, parse)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(n)
}

// A KeptObject is an object with the URL where it was.
type KeptObject struct {
	URL   string
	Value any
}

// Kept returns all objects that are kept by the kinds family.Of(…), whatever their age:
// what other URLs, or certificates that name other URLs, have led to. It asks nobody,
// and leaves out what parse refuses of what has come from the disk.
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

// Doubt says that what is kept does not fit where it should: that an issuer has
// not signed what names it, or has expired, say. It is then asked for anew, but not before
// it is ten minutes old; should that fail, it goes on as before.
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

// Prove says that what an Issuer's URL has was of use: it has signed a certificate,
// and somebody who is trusted has signed it. What is kept at that URL, now and later,
// is not pushed out by what other URLs lead to that were of no use.
func (f *Fetcher) Prove(url string) {
	f.change(name{Issuer, url}, func(k *kept) bool {
		is := k.proven
		k.proven = true
		return !is
	})
}

// change replaces what is kept by a name by what edit makes of it, if edit reports that it
// has changed something.
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

// CacheError is why the cache file was not read or written last, or nil.
func (f *Fetcher) CacheError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cacheErr
}

// succeed returns why a value must not take the place of another one, or nil.
func succeed(value, held any) (err error) {
	successor, ok := value.(Successor)
	if !ok {
		return nil
	}
	defer recovered(&err)
	return successor.Succeed(held)
}

// recovered makes an error of a panic.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v", r)
	}
}

// guarded calls parse and makes an error of a panic.
func guarded(parse Parse, body []byte) (value any, until time.Time, err error) {
	defer recovered(&err)
	value, until, err = parse(body)
	if err != nil {
		return nil, time.Time{}, err
	}
	return value, until, nil
}
