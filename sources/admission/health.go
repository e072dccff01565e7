package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

const (
	// maxWarnings is the maximum number of a source's warnings that are logged at once.
	maxWarnings = 20
	// quietTime is how long, for one source, further failures to fetch and repeated reasons for an
	// unchecked TPM are not logged. Both depend on one machine's evidence, and are in the log line
	// about that machine as well.
	quietTime = 10 * time.Minute
	// uncheckedMost is the maximum number of different reasons for unchecked TPMs that are logged
	// for a source within quietTime.
	uncheckedMost = 8
	// probeTimeout and reportTimeout are the longest times that a probe and a Status may take.
	probeTimeout, reportTimeout = 5 * time.Second, 5 * time.Second
)

// health is what is known about a source, and what was last logged about it.
type health struct {
	mu      sync.Mutex
	started time.Time

	loaded            bool   // a Load has succeeded
	loadErr           error  // of the last Load
	succeeded, failed uint64 // Loads

	checkErr error // of the last check; nil if it could tell

	fetched, fetchesFailed uint64
	fetchLogged            time.Time
	uncheckedSince         time.Time
	unchecked              []string

	entries  int // this and the next two are what was logged last
	serial   uint64
	warnings []string
}

func (h *health) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = time.Now()
}

// failing reports whether the last check could not tell.
func (h *health) failing() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.checkErr != nil
}

// noteLoad records how a Load has ended, and logs it if the previous Load ended differently. While
// a source is being stopped, nothing is recorded.
func (r *runner) noteLoad(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	serving := err != nil && r.serving()
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.loadErr
	if before != nil && err != nil && sameFailure(before, err) {
		err = before // so that callers that compare errors see no change
	}
	h.loadErr = err
	switch {
	case err != nil:
		h.failed++
		if before != nil && before.Error() == err.Error() {
			return
		}
		what := "source failed to load; it cannot tell until it loads"
		if h.loaded || serving {
			what = "source failed to load; the last good data stays in use"
		}
		r.log.Warn(what, stackOf(err)...)
		return
	case before != nil:
		r.log.Info("source has recovered: it has loaded again")
	case !h.loaded:
		r.log.Info("source has loaded")
	}
	h.succeeded++
	h.loaded = true
}

// serving reports whether the source says that it has data, even if no Load has succeeded: a cache
// may have data from an earlier process.
func (r *runner) serving() bool {
	s, err := r.report()
	return err == nil && !s.Loaded.IsZero()
}

// passing matches what may differ between two errors that mean the same: the current time in errors
// of crypto/x509, durations, and the local port.
var passing = regexp.MustCompile(`current time \S+|:\d+->|\b\d+(\.\d+)?(ns|µs|ms|s|m|h)[0-9.hmsµn]*\b`)

// sameFailure reports whether two errors differ only in what passing matches. If such an error were
// logged at each poll, other lines would be lost among them.
func sameFailure(a, b error) bool {
	return passing.ReplaceAllString(a.Error(), "") == passing.ReplaceAllString(b.Error(), "")
}

// noteCheck logs when the source begins to fail, and when it has recovered. A Fetcher's errors do
// not count, since they depend on one machine's evidence.
func (r *runner) noteCheck(err error) {
	if panicked(err) {
		r.log.Error("source panicked in Check", stackOf(err)...)
	}
	if r.fetcher != nil {
		return
	}
	if errors.Is(err, sources.ErrNeedsChallenge) {
		err = nil
	}
	h := &r.health
	h.mu.Lock()
	before := h.checkErr
	h.checkErr = err
	h.mu.Unlock()
	switch {
	case (before == nil) == (err == nil):
		return
	case err != nil:
		r.log.Warn("source cannot tell", slog.Any("error", err))
	default:
		r.log.Info("source can tell again")
	}
	r.changed()
}

// noteFetch counts how fetches end, and logs failures at most once in quietTime.
func (r *runner) noteFetch(err error) {
	if panicked(err) {
		r.log.Error("source panicked in Fetch", stackOf(err)...)
	}
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.fetched++
		return
	}
	h.fetchesFailed++
	if now := time.Now(); h.fetchLogged.IsZero() || now.Sub(h.fetchLogged) >= quietTime {
		h.fetchLogged = now
		r.log.Warn("source could not fetch what a machine's evidence needs",
			slog.Any("error", err), slog.Uint64("failed", h.fetchesFailed), slog.Uint64("succeeded", h.fetched))
	}
}

// panicked reports whether an error is from a panic.
func panicked(err error) bool {
	p := (*panicError)(nil)
	return errors.As(err, &p)
}

// noteUnchecked logs what could not be checked about a TPM that is listed all the same.
func (r *runner) noteUnchecked(what string) {
	if what == "" {
		return
	}
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.uncheckedSince.IsZero() || now.Sub(h.uncheckedSince) >= quietTime {
		h.uncheckedSince, h.unchecked = now, nil
	}
	if len(h.unchecked) < uncheckedMost && !slices.Contains(h.unchecked, what) {
		h.unchecked = append(h.unchecked, what)
		r.log.Warn("source lists a TPM although not everything could be checked", slog.String("unchecked", what))
	}
}

// noteStuck logs when calls begin to hang, and when no call hangs any longer.
func (r *runner) noteStuck(stuck, network bool) {
	if stuck {
		r.log.Warn("a check of the source is stuck: it has not returned by its deadline",
			slog.Int("slots", cap(r.checks.slots)), slog.Bool("network", network))
	} else {
		r.log.Info("no check of the source is stuck any longer")
	}
	r.changed()
}

// noteStatus logs what the source serves, if that has changed.
func (r *runner) noteStatus() {
	s, err := r.report()
	if err != nil {
		r.log.Error("source failed", stackOf(err)...)
		return
	}
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.Entries != h.entries || s.Serial != h.serial {
		attrs := []any{slog.Int("entries", s.Entries)}
		if s.Serial != 0 {
			attrs = append(attrs, slog.Uint64("serial", s.Serial))
		}
		r.log.Info("source serves", attrs...)
		h.entries, h.serial = s.Entries, s.Serial
	}
	if slices.Equal(s.Warnings, h.warnings) {
		return
	}
	for i, w := range s.Warnings {
		if i == maxWarnings {
			r.log.Warn("source has further warnings", slog.Int("number", len(s.Warnings)-i))
			break
		}
		r.log.Warn("source needs attention", slog.String("warning", w))
	}
	if len(s.Warnings) == 0 {
		r.log.Info("source no longer needs attention")
	}
	h.warnings = slices.Clone(s.Warnings)
}

// probe asks the source about a TPM that does not exist, as an attestation would, and records
// whether the source can tell. A Fetcher is not asked, since its answer would say nothing about its
// health.
func (r *runner) probe(ctx context.Context) error {
	switch {
	case r.fetcher != nil:
		return nil
	case r.checks.stuck.Load() > 0: // probes of a hung mount must not take all slots
		return errors.New("an earlier check has not returned")
	}
	ev, err := nobody()
	if err != nil {
		return err
	}
	err = r.checks.Do(ctx, probeTimeout, func(ctx context.Context) error {
		_, err := r.check(ctx, ev)
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.noteCheck(err)
	return err
}

// nobody returns the evidence of a TPM that does not exist.
func nobody() (*sources.Evidence, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("write the key: %w", err)
	}
	return &sources.Evidence{EKHash: sha256.Sum256(der), EK: key.Public()}, nil
}

// report returns the status that the source reports; zero if it is not a Reporter. It returns an
// error if Status panics or does not return in time, so that neither the source's Loads nor the
// status of other sources have to wait for it.
func (r *runner) report() (sources.Status, error) {
	reporter, ok := r.source.(sources.Reporter)
	if !ok {
		return sources.Status{}, nil
	}
	var s sources.Status
	err := r.reports.Do(context.Background(), reportTimeout, func(context.Context) error {
		s = reporter.Status()
		return nil
	})
	if err != nil {
		return sources.Status{}, fmt.Errorf("report the status: %w", err)
	}
	return s, nil
}

// SourceStatus is the state of one source of a Set.
type SourceStatus struct {
	Name, Kind string
	// Started is when the source was started; zero before. It does not change when a later
	// Set takes the source over.
	Started time.Time
	// Loads is true if the source is a Loader.
	Loads bool
	// Next is when the next Load is due; zero if none is scheduled.
	Next time.Time
	// Status is what the source reports; zero if it is not a Reporter.
	sources.Status
	// Err says why the last Load failed or, if it did not, why the last check could not tell;
	// otherwise it is nil.
	Err error
	// Refreshed and Failed count the successful and the failed attempts to load since the
	// source was started.
	Refreshed, Failed uint64
	// Failing is true if the last check could not tell. It is never true for a Fetcher, whose
	// answers depend on one machine's evidence.
	Failing bool
	// Fetches is true if the source is a Fetcher. Fetched and FetchesFailed count
	// the answers of Fetch and its errors.
	Fetches                bool
	Fetched, FetchesFailed uint64
	// Stuck is the number of checks that have not returned although their deadline has passed.
	Stuck int
}

// Up reports whether the source itself is healthy: if it is a Loader, it has loaded its data and
// the last Load did not fail; and the last check could tell. Failures of the servers from which a
// Fetcher fetches do not count.
func (s SourceStatus) Up() bool {
	return s.Err == nil && !s.Failing && (s.Refreshed > 0 || !s.Loads)
}

// status returns the state of the source. If the source's Status panics, that is Err.
func (r *runner) status() SourceStatus {
	reported, err := r.report()
	s := SourceStatus{
		Name: r.name, Kind: r.kind, Status: reported, Fetches: r.fetcher != nil,
		Stuck: int(r.checks.stuck.Load() + r.fetches.stuck.Load()),
	}
	if _, s.Loads = r.source.(sources.Loader); s.Loads {
		s.Next = r.poll.scheduled()
	}
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Started, s.Err, s.Refreshed, s.Failed = h.started, h.loadErr, h.succeeded, h.failed
	s.Failing, s.Fetched, s.FetchesFailed = h.checkErr != nil, h.fetched, h.fetchesFailed
	if s.Err == nil {
		s.Err = h.checkErr
	}
	if err != nil {
		s.Err = err
	}
	return s
}

// Status returns the state of every source, sorted by name.
func (s *Set) Status() []SourceStatus {
	running := s.runners()
	all := make([]SourceStatus, len(running))
	for i, r := range running {
		all[i] = r.status()
	}
	return all
}
