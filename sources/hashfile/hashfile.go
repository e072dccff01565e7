// Package hashfile is a source that knows the TPMs in a list, which is a file.
//
// The list has one of the forms of package eklist, text or JSON. It is read as a
// whole and served from memory: an attestation reads no file. A change is found
// by watching the folders that lead to the file, within a fraction of a second,
// and by opening the file every PollInterval besides, since a watch sees nothing
// that another host writes to a network file system.
//
// The file may be replaced in any way: by renaming another one over it (the best,
// since nobody ever sees half of it), by writing it in place, by swapping a link
// or a folder on the way to it, as the kubelet does with a mounted ConfigMap.
package hashfile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// What a Config has where it says nothing.
const (
	DefaultPollInterval = 30 * time.Second
	DefaultMaxStaleness = 24 * time.Hour
)

// Config is where the list is.
type Config struct {
	// Path is the file. It is resolved anew at each look, links in it included.
	// A relative one is relative to the working directory of the process.
	Path string
	// PollInterval is how often the file is looked at where nothing tells of a
	// change; DefaultPollInterval where it is zero.
	PollInterval time.Duration
	// MaxStaleness is how long the last good list serves while the file is
	// missing, cannot be read or is no good list, counted from when it was last
	// seen to be what is served; after that the source cannot tell. It is at
	// least twice PollInterval, and DefaultMaxStaleness where it is zero. A file
	// that can be read is never stale, however old it is.
	MaxStaleness time.Duration
	// MaxBytes is how long the file may be; eklist.DefaultMaxBytes where it is
	// zero.
	MaxBytes int64
	// AllowEmpty accepts a text without an entry.
	AllowEmpty bool
}

// Source is a list of TPMs in a file. It is safe for concurrent use.
type Source struct {
	cfg Config
	// now, quiet and openWatch are time.Now, quietTime and inotify; tests have
	// others.
	now       func() time.Time
	quiet     time.Duration
	openWatch watchFunc

	// state is what the last good Load has left, nil before it. Load alone
	// replaces it; it is never changed.
	state atomic.Pointer[state]
	// failure is why the last Refresh has failed, nil if it has not.
	failure atomic.Pointer[error]
	// unwatched is why changes are found by looking alone, empty if they are not.
	unwatched atomic.Pointer[string]
}

// state is a list that is served.
type state struct {
	list *eklist.Snapshot
	// file is what the list was read from, since when it looks like that, and
	// whether it was read again since, late enough to have been changed in the
	// meantime without looking otherwise.
	file    identity
	since   time.Time
	settled bool

	loaded    time.Time
	confirmed time.Time // when the file was last seen to hold the list
	collapse  string    // a warning about what it has lost, or empty
}

var errNotLoaded = errors.New("no list has been loaded yet")

// New checks the configuration and returns the source. It touches no file.
func New(cfg Config) (*Source, error) {
	if cfg.PollInterval == 0 {
		cfg.PollInterval = DefaultPollInterval
	}
	if cfg.MaxStaleness == 0 {
		cfg.MaxStaleness = DefaultMaxStaleness
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = eklist.DefaultMaxBytes
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Source{
		cfg: cfg, now: time.Now, quiet: quietTime, openWatch: inotify,
	}, nil
}

// check returns all that is wrong with a configuration that has its defaults.
func (c Config) check() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, sources.BadField(field, format, args...))
	}
	switch {
	case c.Path == "":
		bad("path", "is missing")
	case strings.ContainsRune(c.Path, 0):
		bad("path", "has a zero byte in it")
	}
	if c.PollInterval < 0 {
		bad("poll_interval", "is %v, but must be positive", c.PollInterval)
	}
	if c.MaxStaleness < 2*c.PollInterval {
		bad("max_staleness", "is %v, but must be at least twice poll_interval, which is %v",
			c.MaxStaleness, c.PollInterval)
	}
	if c.MaxBytes < 0 || c.MaxBytes > eklist.MaxBytes {
		bad("max_bytes", "is %d, but must be from 1 to %d", c.MaxBytes, int64(eklist.MaxBytes))
	}
	return errors.Join(errs...)
}

// Check implements sources.Source. It looks the EK hash up in memory.
//
// It cannot tell before the first good Load, once the last good one is longer
// ago than MaxStaleness, and once the list has expired by its own "expires".
func (s *Source) Check(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	st := s.state.Load()
	if st == nil {
		return sources.Verdict{}, errNotLoaded
	}
	now := s.now()
	if err := st.usable(now, s.cfg.MaxStaleness, s.failure.Load()); err != nil {
		return sources.Verdict{}, err
	}
	return st.list.Verdict(ev)
}

// usable reports why the list is not to be served at a time, or nil. why points to
// what has kept it from being confirmed, or is nil.
//
// Its age is by the monotonic clock, so that a wall clock that jumps makes it
// neither older nor younger. A time without one that lies in the future says
// nothing of an age.
func (st *state) usable(now time.Time, most time.Duration, why *error) error {
	switch age := now.Sub(st.confirmed); {
	case age < 0:
		return errors.New("the list was last confirmed in the future: check the clock")
	case age > most && why != nil && *why != nil:
		return fmt.Errorf("the list is stale: it was last confirmed at %s; since then: %w",
			st.confirmed.UTC().Format(time.RFC3339), *why)
	case age > most:
		return fmt.Errorf("the list is stale: it was last confirmed at %s", st.confirmed.UTC().Format(time.RFC3339))
	}
	return fresh(st.list, now)
}

// fresh reports whether a list has expired.
func fresh(list *eklist.Snapshot, now time.Time) error {
	if h := list.Header(); h.Expired(now) {
		return fmt.Errorf("the list expired at %s: write a newer one", h.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// Status implements sources.Reporter. Of a list that has expired or gone stale
// it says what it was.
func (s *Source) Status() sources.Status {
	var status sources.Status
	if st := s.state.Load(); st != nil {
		status.Loaded, status.Confirmed = st.loaded, st.confirmed
		status.Entries, status.Serial, status.Expires = st.list.Len(), st.list.Header().Serial, st.list.Header().Expires
		status.Warnings = slices.Clone(st.list.Warnings())
		if st.collapse != "" {
			status.Warnings = append(status.Warnings, st.collapse)
		}
	}
	if why := s.unwatched.Load(); why != nil && *why != "" {
		status.Warnings = append(status.Warnings, *why)
	}
	return status
}

// Schedule implements sources.Loader.
func (s *Source) Schedule() sources.Schedule {
	return sources.Schedule{Every: s.cfg.PollInterval, Early: true}
}
