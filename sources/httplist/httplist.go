// Package httplist is a source that knows the TPMs in a JSON list behind a web
// server.
//
// The list is polled over HTTPS with conditional requests (RFC 9110, 13). The
// last good one serves until a newer one has been read to its end, checked and
// put into the cache, and for [Config.MaxStaleness] at most after the server has
// last said, by a 200 or a 304, what the list is. A list that is cut, torn, too
// long, replayed or expired takes the place of nothing.
//
// What has to be trusted is the web server, as its certificate or its X.509-SVID
// names it, and where there are public keys, their holders instead.
package httplist

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listsig"
)

// What a Config has where it says nothing.
const (
	DefaultTimeout      = 10 * time.Second
	DefaultPollInterval = 30 * time.Second
	DefaultMaxStaleness = 24 * time.Hour
	DefaultMaxBytes     = eklist.DefaultMaxBytes
)

// clockSlack is how far the clock may be set back after the last answer of the
// server before the list counts as stale: a correction, not a jump.
const clockSlack = 5 * time.Second

// Config is where the list is. Only URL is required. All files are read anew at
// each attempt, so that replacing one needs no restart; each is a regular file.
type Config struct {
	// URL is the list's, of scheme https, without user and fragment.
	// Redirects are followed on the same host and port only.
	URL string
	// CAPath is a PEM file of the CA certificates that may vouch for the
	// server; the system's where it is empty.
	CAPath string
	// ClientCertPath and ClientKeyPath are PEM files of the certificate, with
	// its chain, and the key that are shown to a server that asks for one.
	// Both are set, or neither.
	ClientCertPath, ClientKeyPath string
	// BearerTokenPath is a file whose content, without blanks around it, goes
	// into the Authorization header (RFC 6750, 2.1).
	BearerTokenPath string
	// ServerID is the SPIFFE ID of the web server, where both sides are known
	// by X.509-SVIDs and not by the files above: the web server has to show one
	// with exactly this ID, of the trust domain of Identity, whatever its host
	// name, and is shown this server's own. Empty where they are not.
	ServerID string
	// Auth is AuthSPIFFE if ServerID is set, and otherwise empty.
	Auth string
	// Identity is asked at each attempt if ServerID is set, and is needed then.
	Identity IdentityProvider
	// Timeout bounds one attempt, from the connection to the last byte and
	// with all retries; DefaultTimeout where it is zero.
	Timeout time.Duration
	// PollInterval is the longest time from one attempt to the next;
	// DefaultPollInterval where it is zero.
	PollInterval time.Duration
	// MaxStaleness is for how long the list serves after the server has last
	// answered 200 or 304, at least twice PollInterval; DefaultMaxStaleness
	// where it is zero.
	MaxStaleness time.Duration
	// MaxBytes bounds the list, both as it is sent and decoded;
	// DefaultMaxBytes where it is zero, eklist.MaxBytes at most.
	MaxBytes int64
	// CachePath is a file of package listcache, from which the list serves
	// after a restart; no cache where it is empty.
	CachePath string
	// SignatureURL, PublicKeyPath and ListID are all set, or none. With them,
	// the list serves only where one of the keys in PublicKeyPath (package
	// listsig) has signed it, decoded, where it has a serial, an expiry and the
	// name ListID. One whose key was taken out of the file does not serve any
	// more from the next attempt on, and its serial does not count.
	// SignatureURL is on the same host and port as URL.
	SignatureURL, PublicKeyPath, ListID string
	// Now is the clock for staleness and expiry, and by which the server's
	// certificate is verified; time.Now where it is nil.
	Now func() time.Time
}

// Source is a list behind a web server. It is safe for concurrent use.
type Source struct {
	cfg      Config
	url      *url.URL
	cache    *listcache.Cache // nil where there is none
	verifier *verifier        // nil where lists are not signed
	// retryPause is the constant of that name; tests have no patience.
	retryPause time.Duration

	// state is the last good list, nil before there is one. It is never
	// changed, only replaced.
	state atomic.Pointer[state]
	// failure is why the last poll has failed, nil if it has not.
	failure atomic.Pointer[error]
	// warnings are of the last Load.
	warnings atomic.Pointer[[]string]

	// Only Load, which is never called twice at once, uses what follows.
	keys          listsig.PublicKeys // that may sign; none where lists are not signed
	unconditional bool               // the next request is to be
	touched       time.Time          // what the cache holds as the time of the last answer
	// loadWarning and saveWarning say what went wrong with the cache last.
	loadWarning, saveWarning string
}

// state is one good list.
type state struct {
	list       *eklist.Snapshot
	validators validators
	loaded     time.Time
	// confirmed is when the server has last said that this is the list.
	confirmed time.Time
	// size is the list's in bytes, decoded.
	size int64
	// here is true where the server has said so to this process, false where
	// only the cache has.
	here bool
	// key is of the public key that has signed the list; zero where none has.
	key listsig.ID
	// collapse is a warning about what the list has lost, or empty.
	collapse string
}

// New checks the configuration and returns the source. It reads nothing: the
// first Load does.
func New(cfg Config) (*Source, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.PollInterval = cmp.Or(cfg.PollInterval, DefaultPollInterval)
	cfg.MaxStaleness = cmp.Or(cfg.MaxStaleness, DefaultMaxStaleness)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, DefaultMaxBytes)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	u, err := parseURL("url", cfg.URL)
	verifier, badSignature := newVerifier(cfg, u)
	if err := errors.Join(err, badSignature, cfg.checkNumbers(), cfg.checkServer()); err != nil {
		return nil, err
	}
	s := &Source{
		cfg: cfg, url: u, verifier: verifier, retryPause: retryPause,
	}
	if cfg.CachePath != "" {
		of := []string{u.String()}
		if verifier != nil {
			of = append(of, verifier.listID)
		}
		s.cache = listcache.New(cfg.CachePath, cfg.MaxBytes, of...)
	}
	return s, nil
}

var errNotLoaded = errors.New("no list is loaded")

// Check implements sources.Source. It looks the EK hash up in the last good
// list, and cannot tell where there is none, where the server has not confirmed
// it for longer than Config.MaxStaleness, where it was confirmed in the future by
// the clock as it is now, and where the list says itself that it has expired.
//
// It reads memory only and takes no lock.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, fmt.Errorf("look up the EK hash: %w", err)
	}
	st := s.state.Load()
	if st == nil {
		return sources.Verdict{}, errNotLoaded
	}
	if err := st.fresh(s.cfg.Now(), s.cfg.MaxStaleness, s.failure.Load()); err != nil {
		return sources.Verdict{}, err
	}
	return st.list.Verdict(ev)
}

// fresh returns why the list may not serve any more, or nil. why points to why the
// server has not confirmed it, or is nil.
func (st *state) fresh(now time.Time, maxStaleness time.Duration, why *error) error {
	now = now.Round(0) // wall clocks are compared: the other may be of another boot
	expires := st.list.Header().Expires
	switch age := now.Sub(st.confirmed); {
	case age < -clockSlack:
		return fmt.Errorf("the list is stale: it was last confirmed at %s, in the future: check the clock",
			stamp(st.confirmed))
	case age > maxStaleness && why != nil && *why != nil:
		return fmt.Errorf("the list is stale: the server has not confirmed it since %s: %w", stamp(st.confirmed), *why)
	case age > maxStaleness:
		return fmt.Errorf("the list is stale: the server has not confirmed it since %s", stamp(st.confirmed))
	case st.list.Header().Expired(now):
		return fmt.Errorf("the list expired at %s", stamp(expires))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Status implements sources.Reporter.
func (s *Source) Status() sources.Status {
	var status sources.Status
	if warnings := s.warnings.Load(); warnings != nil {
		status.Warnings = slices.Clone(*warnings)
	}
	st := s.state.Load()
	if st == nil {
		return status
	}
	status.Loaded, status.Confirmed = st.loaded, st.confirmed
	status.Entries, status.Serial, status.Expires = st.list.Len(), st.list.Header().Serial, st.list.Header().Expires
	return status
}

// Schedule implements sources.Loader.
func (s *Source) Schedule() sources.Schedule {
	return sources.Schedule{Every: s.cfg.PollInterval, Early: true}
}
