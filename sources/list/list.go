// Package list keeps the last good version of a list. A list is a document from an origin.
//
// A document is the content of a list, such as EK hashes. Its package parses the bytes of the list
// into a [Content]. An [Origin] is where the bytes come from: a file or a web server. A [List] does
// everything else, for every document from every origin: it decides when a list is stale or
// expired, which list may replace which, and whose signature counts; it keeps the cache that is
// served after a restart, and reports the status.
//
// A list replaces the previous list as a whole or not at all. A list that is torn, too long,
// malformed, replayed or expired changes nothing: the last good list is served until
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
	// Expires is when the list expires; zero if the list does not say.
	Expires time.Time
	// Name is the list's own name, or empty.
	Name string
}

// Expired reports whether the list has expired.
func (h Header) Expired(now time.Time) bool { return !h.Expires.IsZero() && !now.Before(h.Expires) }

// Content is a whole, parsed list of the type T. It is immutable, and so safe for concurrent use.
type Content[T any] interface {
	Header() Header
	// Len returns the number of entries.
	Len() int
	// Equal reports whether other has the same entries. The headers do not count.
	Equal(other T) bool
	// Without returns the number of entries of older that are not in this list.
	Without(older T) int
	// Warnings say what an operator should look at although the list is good.
	Warnings() []string
}

// Parse reads a whole list. It returns an error that names the place of the mistake, and does not
// retain data.
type Parse[T Content[T]] func(data []byte) (T, error)

// An Origin is where a list is.
type Origin interface {
	// Read makes one attempt to read the list. tag is that of the copy that is being served, or
	// empty: if the origin still has that copy, Copy.Data may be nil. Calls never overlap. The
	// error is worded for an operator; it is one of [sources.Later] if the origin has asked to be
	// left alone.
	Read(ctx context.Context, tag string) (Copy, error)
	// Warnings describe what keeps the origin from working as well as it could, for
	// [sources.Status]. It is safe to call at any time.
	Warnings() []string
}

// A Copy is the list as an origin has it at one moment.
type Copy struct {
	// Data is the whole list, which then belongs to the caller, or nil if the origin still has the
	// copy with the tag.
	Data []byte
	// Signature is the detached signature that the origin has for the list, or nil.
	Signature []byte
	// Tag identifies this content at its origin. It may be empty.
	Tag string
	// At is when the origin was seen to have this list.
	At time.Time
}

// The defaults of a Config.
const (
	DefaultEvery        = 30 * time.Second
	DefaultMaxStaleness = 24 * time.Hour
)

// The maximum length of a list in bytes: the default of an Origin, and the most that can be
// configured.
const (
	DefaultMaxBytes = 256 << 20
	MostMaxBytes    = 4<<30 - 1
)

// ErrTooLong is wrapped by the error of an Origin if the list exceeds the limit.
var ErrTooLong = errors.New("the list is too long")

// Config says how a list is kept.
type Config struct {
	// What names the list in errors, for example by its path; the default is "the list".
	What string
	// Every is the longest time from one look at the origin to the next; DefaultEvery
	// if it is zero.
	Every time.Duration
	// MaxStaleness is how long the last good list is served after it was last confirmed at the
	// origin. It must be at least twice Every; DefaultMaxStaleness if it is zero.
	MaxStaleness time.Duration
	// Cache is a file from which the list is served after a restart; nil if there is none.
	Cache *Cache
	// Signing says whose signature the list needs; nil if it needs none.
	Signing *Signing
	// Remote is true if the origin needs the network.
	Remote bool
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
}

// A List serves the last good list from an origin. It is safe for concurrent use, but calls of Load
// must not overlap.
type List[T Content[T]] struct {
	parse  Parse[T]
	origin Origin
	cfg    Config

	// state is what is served; nil if there is nothing yet. Only Load replaces it, and nothing
	// changes it.
	state atomic.Pointer[state[T]]
	// failure is the error of the last Load; nil if it succeeded.
	failure atomic.Pointer[error]
	// warnings are about the cache and about entries that the list has lost.
	warnings atomic.Pointer[[]string]

	// Only Load uses the following fields.
	asked     bool                 // whether the origin has been asked before
	saved     time.Time            // the time of confirmation that the cache holds
	keys      signature.PublicKeys // the keys whose signatures count; none if the list needs no signature
	collapsed string               // a text about many entries that the list lost at once, or empty
	// loadFault and saveFault say what last went wrong with the cache, or are empty.
	loadFault, saveFault string
	// unsaved is the list that is served, if the cache could not be written: each Load tries again,
	// without another copy from the origin. Data is nil if there is none.
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
	// here is true if this process has confirmed the list, and false if only an earlier process
	// has.
	here bool
}

// New checks the configuration and returns the list. It reads nothing. If the configuration is
// invalid, it returns the joined errors, one sources.FieldError for each problem; Every is called
// poll_interval, and MaxStaleness max_staleness.
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

// LimitOf returns the maximum length of a list for an Origin, given the configured max_bytes. Zero
// means the default.
func LimitOf(maxBytes int64) (int64, error) {
	if maxBytes < 0 || maxBytes > MostMaxBytes {
		return 0, sources.BadField("max_bytes", "is %d, but must be from 1 to %d", maxBytes, int64(MostMaxBytes))
	}
	return cmp.Or(maxBytes, DefaultMaxBytes), nil
}

var errNotLoaded = errors.New("no list has been loaded yet")

// Current returns the list that may be used now. It only reads memory and takes no lock. The error
// says why there is none: nothing has been loaded, the list was last confirmed longer than
// MaxStaleness ago, or the list has expired.
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

// errStale is wrapped by the error about a list that was confirmed too long ago.
var errStale = errors.New("the list is stale")

// clockSlack is how far a clock may be set back before a list that an earlier process has confirmed
// counts as stale. Ordinary corrections of a clock are smaller, jumps are larger.
const clockSlack = 5 * time.Second

// usable returns an error if a list may not be used. If this process has confirmed the list, its
// age is measured by the monotonic clock as well, so that setting the wall clock back does not make
// it stale. If more time has passed by the wall clock, as after the machine was suspended, the wall
// clock decides.
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

// unexpired returns an error if a list has expired.
func (l *List[T]) unexpired(h Header) error {
	if h.Expired(l.cfg.Now()) {
		return fmt.Errorf("the list expired at %s: publish one with a later date", stamp(h.Expires))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Schedule implements sources.Loader. Early is set, since a TPM that the list does not have may
// have been listed a moment ago.
func (l *List[T]) Schedule() sources.Schedule {
	return sources.Schedule{Every: l.cfg.Every, Early: true}
}

// Status implements sources.Reporter. It also describes a list that has expired or gone stale.
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
