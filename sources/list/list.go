// Package list keeps a list that is a document from an origin.
//
// A document is what the list says: EK hashes, for example. Its package parses the bytes
// of the list into a [Content]. An [Origin] is where the bytes come from: a file, a web
// server. A [List] does everything else, for every document from every origin: it knows
// when a list goes stale or expires, which list may follow which, and whose signature
// counts; it keeps the cache that serves after a restart, and reports the status.
//
// A list replaces the list before as a whole or not at all. A list that is torn, too
// long, unparsable, replayed or expired changes nothing: the last good list serves until
// [Config.MaxStaleness] has passed.
package list

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
)

// Header is what a list says about itself.
type Header struct {
	// Serial counts the versions of the list, if HasSerial is true.
	Serial    uint64
	HasSerial bool
	// Expires is when the list ceases to be good; zero if the list does not say.
	Expires time.Time
	// Name is the list's own name, or empty.
	Name string
}

// Expired reports whether the list is no longer good at a time.
func (h Header) Expired(now time.Time) bool { return !h.Expires.IsZero() && !now.Before(h.Expires) }

// Content is a whole list of the kind T, parsed. It never changes, so any number of
// goroutines may use it.
type Content[T any] interface {
	Header() Header
	// Len is how many entries it has.
	Len() int
	// Equal reports whether other has the same entries. The headers do not count.
	Equal(other T) bool
	// Without returns how many entries of older are not in this list.
	Without(older T) int
	// Warnings say what an operator should look at, though the list is good.
	Warnings() []string
}

// Parse reads the bytes of a list. It takes the whole of them or returns an error that
// names the place; it does not retain data.
type Parse[T Content[T]] func(data []byte) (T, error)

// An Origin is where a list is.
type Origin interface {
	// Read makes one attempt to read the list. tag is that of the copy that is served,
	// or empty: if the origin still has that copy, Copy.Data may be nil. Calls never
	// overlap. An error is in words for an operator, and says by [sources.Later] if
	// the origin has asked to be left alone.
	Read(ctx context.Context, tag string) (Copy, error)
	// Warnings describe what keeps the origin from working as well as it could, for
	// [sources.Status]. It is safe to call at any time.
	Warnings() []string
}

// A Copy is the list as an origin has it at one moment.
type Copy struct {
	// Data is the whole list, not nil, and nobody else's; nil if the origin still has
	// the copy with the tag.
	Data []byte
	// Signature is what stands beside the list as its signature, or nil.
	Signature []byte
	// Tag tells this content from another at the same origin. It may be empty.
	Tag string
	// At is when the origin was seen to have this list.
	At time.Time
}

// What a Config has if it says nothing.
const (
	DefaultEvery        = 30 * time.Second
	DefaultMaxStaleness = 24 * time.Hour
)

// The limits of a list in bytes: what an Origin has if nothing is configured, and what
// may be configured at most.
const (
	DefaultMaxBytes = 256 << 20
	MostMaxBytes    = 4<<30 - 1
)

// ErrTooLong is in the error of an Origin if the list is longer than is allowed.
var ErrTooLong = errors.New("the list is too long")

// Config says how a list is kept.
type Config struct {
	// What is the list in the words of an error, such as its path; "the list" if it is
	// empty.
	What string
	// Every is the longest time from one look at the origin to the next; DefaultEvery
	// if it is zero.
	Every time.Duration
	// MaxStaleness is how long the last good list serves after the origin was last
	// seen to have it, at least twice Every; DefaultMaxStaleness if it is zero.
	MaxStaleness time.Duration
	// Cache is a file from which the list serves after a restart; nil if there is none.
	Cache *Cache
	// Signing says whose signature the list needs; nil if it needs none.
	Signing *Signing
	// Remote is true if the origin needs the network.
	Remote bool
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
}

// A List is the last good list from an origin. It is safe for concurrent use.
type List[T Content[T]] struct {
	parse  Parse[T]
	origin Origin
	cfg    Config

	// state is what serves, nil before there is anything. Load alone replaces it; it
	// is never changed.
	state atomic.Pointer[state[T]]
	// failure is why the last Load has failed, nil if it has not.
	failure atomic.Pointer[error]
	// warnings are about the cache and about what the list has lost.
	warnings atomic.Pointer[[]string]

	// Load alone uses what follows, and is never called twice at once.
	asked     bool                 // whether the origin has been asked before
	saved     time.Time            // the time of confirmation that the cache holds
	keys      signature.PublicKeys // whose signature counts; none if the list needs none
	collapsed string               // what the list has lost at once, in words, or empty
	// loadFault and saveFault are what went wrong with the cache last, or empty.
	loadFault, saveFault string
	// unsaved is what serves, if the cache could not be written: it is tried again at each
	// Load, without another copy from the origin. Data is nil if there is none.
	unsaved Copy
}

// state is one good list.
type state[T any] struct {
	content T
	digest  [sha256.Size]byte // of its bytes
	key     signature.ID      // of the key that has signed it; zero if none has
	tag     string
	loaded  time.Time
	// confirmed is when the origin was last seen to have this list.
	confirmed time.Time
	// here is true if this process has seen that, and false if only an earlier process has.
	here bool
}

// New checks the configuration and returns the list. It reads nothing. The error is of all
// that is wrong, a sources.FieldError each: Every is poll_interval, and MaxStaleness is
// max_staleness.
func New[T Content[T]](parse Parse[T], origin Origin, cfg Config) (*List[T], error) {
	cfg.What = cmp.Or(cfg.What, "the list")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	var errs []error
	for _, d := range []struct {
		field     string
		value     *time.Duration
		otherwise time.Duration
	}{{"poll_interval", &cfg.Every, DefaultEvery}, {"max_staleness", &cfg.MaxStaleness, DefaultMaxStaleness}} {
		*d.value = cmp.Or(*d.value, d.otherwise)
		if *d.value < 0 {
			errs = append(errs, sources.BadField(d.field, "is %v, but must be positive", *d.value))
		}
	}
	if cfg.MaxStaleness >= 0 && cfg.MaxStaleness/2 < cfg.Every {
		errs = append(errs, sources.BadField("max_staleness",
			"is %v, but must be at least twice poll_interval, which is %v", cfg.MaxStaleness, cfg.Every))
	}
	return &List[T]{parse: parse, origin: origin, cfg: cfg}, errors.Join(errs...)
}

// LimitOf returns the limit of a list's length that is configured as maxBytes, for an
// Origin.
func LimitOf(maxBytes int64) (int64, error) {
	if maxBytes < 0 || maxBytes > MostMaxBytes {
		return 0, sources.BadField("max_bytes", "is %d, but must be from 1 to %d", maxBytes, int64(MostMaxBytes))
	}
	return cmp.Or(maxBytes, DefaultMaxBytes), nil
}

var errNotLoaded = errors.New("no list has been loaded yet")

// Current returns the list that may serve now. It reads memory only and takes no lock.
// The error says why there is none: nothing has been loaded, the origin was not seen
// to have the list for longer than MaxStaleness, or the list has expired.
func (l *List[T]) Current() (T, error) {
	var none T
	st := l.state.Load()
	if st == nil {
		return none, errNotLoaded
	}
	err := l.usable(st)
	if err == nil {
		return st.content, nil
	}
	if failure := l.failure.Load(); failure != nil && *failure != nil && errors.Is(err, errStale) {
		err = fmt.Errorf("%w; since then: %w", err, *failure)
	}
	return none, err
}

// errStale is in the error of a list that was confirmed too long ago.
var errStale = errors.New("the list is stale")

// clockSlack is how far a clock may be set back before a list that an earlier process has
// confirmed counts as stale. Corrections of a clock are smaller, jumps are larger.
const clockSlack = 5 * time.Second

// usable returns why a list may not serve, or nil. If this process has confirmed the list,
// its age is measured by the monotonic clock too, so that a wall clock that is set back does
// not make it stale. If the wall clock says that more time has passed, as after the machine
// was suspended, it is believed.
func (l *List[T]) usable(st *state[T]) error {
	now := l.cfg.Now()
	age := now.Sub(st.confirmed)
	if wall := now.Round(0).Sub(st.confirmed.Round(0)); wall > age {
		age = wall
	}
	switch {
	case age < -clockSlack:
		return fmt.Errorf("%w: it was last confirmed at %s, in the future: check the clock",
			errStale, stamp(st.confirmed))
	case age > l.cfg.MaxStaleness:
		return fmt.Errorf("%w: it was last confirmed at %s", errStale, stamp(st.confirmed))
	}
	return l.unexpired(st.content.Header())
}

// unexpired returns an error if a list says that it is too old.
func (l *List[T]) unexpired(h Header) error {
	if h.Expired(l.cfg.Now()) {
		return fmt.Errorf("the list expired at %s: publish one with a later date", stamp(h.Expires))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Schedule implements sources.Loader. A TPM that the list does not have may have been
// listed a moment ago.
func (l *List[T]) Schedule() sources.Schedule {
	return sources.Schedule{Every: l.cfg.Every, Early: true}
}

// Status implements sources.Reporter. Of a list that has expired or gone stale it says
// what it was.
func (l *List[T]) Status() sources.Status {
	var status sources.Status
	status.Warnings = append(status.Warnings, l.origin.Warnings()...)
	if warnings := l.warnings.Load(); warnings != nil {
		status.Warnings = append(status.Warnings, *warnings...)
	}
	st := l.state.Load()
	if st == nil {
		return status
	}
	h := st.content.Header()
	status.Loaded, status.Confirmed, status.Stale = st.loaded, st.confirmed, st.confirmed.Add(l.cfg.MaxStaleness)
	status.Entries, status.Serial, status.Expires = st.content.Len(), h.Serial, h.Expires
	status.Warnings = append(status.Warnings, st.content.Warnings()...)
	return status
}
