// Package certfetch gets certificates and certificate revocation lists (CRLs)
// from web servers that certificates name, and keeps them.
//
// The names are those of whoever attests, and may be an attacker's: what may be
// asked is decided by the operator alone, in [Config]. What is asked is bounded in
// size, time and number, and what is kept is bounded too, failures by themselves.
//
// Nothing that is kept is trusted, on the disk as little as on its way: all of it
// passes through the caller's [Parse].
package certfetch

import (
	"context"
	"errors"
	"time"
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
// stand for: CRL.Of(<hash of the issuer's key>), say, where Parse accepts what
// that issuer has signed, so that a certificate that names another CA's CRL does
// not spoil it for that CA.
func (k Kind) Of(whom string) Kind { return k + "/" + Kind(whom) }

// ErrNotFound is the answer of a server that has nothing at the URL: 404 or 410.
// It is kept, as other failures are.
var ErrNotFound = errors.New("the server has none (404 Not Found)")

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
	// Mirror, where it is set, is a URL below which <host>/<path> is asked
	// for instead of every URL on Hosts, the host with :port where that is not
	// the scheme's. It is the operator's own, too.
	Mirror string
	// CachePath is a bbolt file that keeps answers for after a restart; where it
	// is empty, memory alone does.
	CachePath string
	// Now is the clock; time.Now where it is nil.
	Now func() time.Time
}

// Parse reads a body and returns its value and until when it may be kept; the
// default where that is zero. What it returns an error for is a failure. It
// depends on the body alone (for one Kind and URL), since its value is shared, and
// is also called with bodies from the disk. It must not change the body or keep a
// part of it that it writes to. A panic is an error.
type Parse func(body []byte) (value any, until time.Time, err error)

// An Object is an answer that was accepted. It is shared: nobody changes it.
type Object struct {
	Value          any
	Body           []byte
	Fetched, Until time.Time
	// Stale is why there is nothing newer although Until has passed: the last
	// attempt has failed. Nil before that. What certificates and CRLs say of
	// their own validity is for the caller to look at, stale or not.
	Stale error
}

// A Fetcher asks and keeps. It is safe for concurrent use.
type Fetcher struct{}

// New checks the configuration. It opens nothing and starts nothing.
func New(Config) (*Fetcher, error) { return &Fetcher{}, nil }

// Load reads the cache into memory. An error says why the file was not used, or
// which part of it: what was in memory, and what is fetched from now on, serves
// nevertheless. No file yet is no error. Call it once, before the first answer.
func (f *Fetcher) Load(context.Context) error { return nil }

// Run writes what is fetched to the cache, soon after it was fetched, until ctx
// ends. It returns nil when all requests under way have ended then, and the rest is written.
// While it runs, a request goes on where nobody waits for it any more. Never call it twice at once.
func (f *Fetcher) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close ends all requests, writes what is not written yet, and returns when no
// goroutine is left. Get fails from then on. Who calls Run to its end need not
// call Close.
func (f *Fetcher) Close() error { return nil }

// Allowed returns the canonical form of a URL that a certificate names and that
// may be asked for as Issuer or CRL; false where it may not.
func (f *Fetcher) Allowed(raw string) (canonical string, ok bool) { return "", false }

// Cached returns what is kept: an object, or the failure that is remembered (kept
// and err), or nothing (kept is false). It waits for nobody; it calls parse where an
// object has come from the disk and was not used yet, and counts it as not
// kept where parse refuses it.
func (f *Fetcher) Cached(kind Kind, url string, parse Parse) (o *Object, kept bool, err error) {
	return nil, false, nil
}

// Get returns what is kept, as Cached does, or asks. All who wait for the same
// kind and URL share one request, and the value that the parse of one of them
// returns. Where an object's time is over and asking again fails, it is returned
// with Stale set, for 90 days.
//
// The URL is one that Allowed has returned or, for EKCertificate, one below
// Config.Bases.
func (f *Fetcher) Get(ctx context.Context, kind Kind, url string, parse Parse) (*Object, error) {
	return nil, errors.New("not there yet")
}

// Doubt says that what is kept does not fit where it should: that an issuer has not
// signed what names it, say. It is then asked for anew, but not before it is
// ten minutes old; should that fail, it goes on as before.
func (f *Fetcher) Doubt(kind Kind, url string) {}

// Stats is what is kept and what was done.
type Stats struct {
	Objects, Failures int   // kept
	Bytes             int64 // of kept bodies
	Requests          uint64
	// CacheError is why the cache file was not read or written last, or nil.
	CacheError error
}

// Stats is cheap, and safe to call at any time.
func (f *Fetcher) Stats() Stats { return Stats{} }
