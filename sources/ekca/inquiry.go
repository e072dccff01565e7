package ekca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// Limits on what one attestation asks others for.
const (
	// MaxURLs is the number of URLs of one kind in a certificate that are asked,
	// of those that may be.
	MaxURLs = 4
	// maxLookups is the number of certificates and CRLs that are looked up,
	// wherever they are.
	maxLookups = 24
	// maxRequests is the number of those that are asked for over the network.
	maxRequests = 8
)

const (
	// leastWait is how long an answer is waited for that does not come, where
	// half of the time that there is would be less.
	leastWait = 5 * time.Second
	// A host that has kept an inquiry waiting for slowAnswer in vain is not waited
	// for again where something old will do, and after deadAnswer not where
	// nothing is there: it has had as much time as it needs to say no.
	slowAnswer, deadAnswer = time.Second, 4 * time.Second
)

var (
	errLookups  = fmt.Errorf("more than %d certificates and CRLs would have to be looked up", maxLookups)
	errRequests = fmt.Errorf("more than %d certificates and CRLs would have to be fetched: "+
		"what has been fetched is kept for the next attempt", maxRequests)
	errDeadHost = errors.New("its host has just left another request unanswered")
)

// An inquiry looks up what one attestation needs from elsewhere. It is not safe
// for concurrent use. A nil one finds nothing and asks nobody.
type inquiry struct {
	store *certfetch.Fetcher
	// network is whether others may be asked.
	network bool

	lookups, requests int // that have been made
	// waited is for how long hosts have kept this inquiry waiting in vain.
	waited map[string]time.Duration
	// pending is whether something has not been looked up because only the
	// network knows it.
	pending bool
	// failures are why what has been looked up could not be had.
	failures []error
}

func (q *inquiry) fail(err error) { q.failures = append(q.failures, err) }

// err returns why it cannot be told what has not been found, or nil where
// everything has been looked up.
func (q *inquiry) err() error {
	switch {
	case q == nil:
		return nil
	case q.pending:
		return sources.ErrNeedsNetwork
	}
	return errors.Join(q.failures...)
}

// allowed returns those of a certificate's URLs that may be asked, in a form that
// is the same for all that mean the same.
func (q *inquiry) allowed(raw []string) []string {
	if q == nil {
		return nil
	}
	var urls []string
	for _, u := range raw {
		if canonical, ok := q.store.Allowed(u); ok && !slices.Contains(urls, canonical) {
			if urls = append(urls, canonical); len(urls) == MaxURLs {
				break
			}
		}
	}
	return urls
}

// issuers returns the certificates that an allowed URL has.
func (q *inquiry) issuers(ctx context.Context, url string, now time.Time) (issuers, bool) {
	object, err := q.lookUp(ctx, certfetch.Issuer, url, parseIssuers(now))
	switch {
	case errors.Is(err, sources.ErrNeedsNetwork):
		q.pending = true
		return nil, false
	case err != nil:
		q.fail(fmt.Errorf("the issuer's certificate: %w", err))
		return nil, false
	}
	fetched, ok := object.Value.(issuers)
	return fetched, ok
}

// lookUp returns what is kept of an allowed URL, or asks for it. The error is
// ErrNeedsNetwork where that is not to be asked.
func (q *inquiry) lookUp(
	ctx context.Context, kind certfetch.Kind, url string, parse certfetch.Parse,
) (*certfetch.Object, error) {
	if q.lookups++; q.lookups > maxLookups {
		return nil, errLookups
	}
	object, kept, err := q.store.Cached(kind, url, parse)
	switch {
	case kept && err != nil:
		return nil, fmt.Errorf("an earlier attempt failed: %w", err)
	case kept:
		return object, nil
	case !q.network:
		return nil, sources.ErrNeedsNetwork
	}
	host := q.store.Host(kind, url)
	if waited := q.waited[host]; waited >= slowAnswer {
		dead := waited >= deadAnswer
		if object, ok := q.store.Stale(kind, url, dead, parse); ok {
			return object, nil
		}
		if dead {
			return nil, fmt.Errorf("fetch %q: %w", url, errDeadHost)
		}
	}
	if q.requests++; q.requests > maxRequests {
		return nil, errRequests
	}
	begun := time.Now()
	within, cancel := patience(ctx)
	defer cancel()
	object, err = q.store.Get(within, kind, url, parse)
	silence := err
	if err == nil {
		silence = object.Stale
	}
	if errors.Is(silence, certfetch.ErrSilent) { // a host that says no may have the next one
		q.inVain(host, time.Since(begun))
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %q: %w", url, err)
	}
	return object, nil
}

// inVain takes down for how long a host was waited for.
func (q *inquiry) inVain(host string, d time.Duration) {
	if q.waited == nil {
		q.waited = make(map[string]time.Duration)
	}
	q.waited[host] = max(q.waited[host], d)
}

// patience returns a context for one look-up: half of the time that there is, so
// that one server that does not answer leaves some for what has to be asked of
// others. There is never less than would do for one that answers slowly: where
// there is no time for that, it is ctx that ends, and nothing can be told.
func patience(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, max(leastWait, time.Until(deadline)/2))
}

// doubt says that the certificate at an allowed URL has not signed the one that
// names it. It is asked for anew after a while: what has been put in its place on
// the way does not stay there.
func (q *inquiry) doubt(url string, child *node) {
	q.store.Doubt(certfetch.Issuer, url)
	q.fail(fmt.Errorf("the certificate at %q did not sign the one issued by %s", url, describe(child.cert.Issuer)))
}
