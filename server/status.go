package server

import (
	"context"
	"maps"
	runtimemetrics "runtime/metrics"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

const (
	// statusInterval is how often the metrics of sources are set if nothing changes.
	statusInterval = 20 * time.Second
	// settleTime is the time from a change to the report about it. Changes that come together are reported
	// together, and the source has planned its next attempt by then.
	settleTime = time.Second
	// statusTimeout limits one report about all sources.
	statusTimeout = 30 * time.Second
	// serialLow: serial numbers are also reported modulo this number, since SPIRE's metrics are exact to 24 bits
	// only.
	serialLow = 1_000_000
)

// watch reports what each source serves to SPIRE's metrics, and to the log if it has changed. Nothing waits for it.
type watch struct {
	log     hclog.Logger
	metrics *metrics // may be nil
	status  func() []admission.SourceStatus
	policy  func() policy.Policy
	used    func() map[reason]float64 // how much of each limit is in use, from 0 to 1; may be nil

	changes chan struct{}
	version string

	stop context.CancelFunc
	done sync.WaitGroup

	announced map[counter]bool // used only by the goroutine of run
}

func newWatch() *watch { return &watch{changes: make(chan struct{}, 1)} }

// changed makes watch report soon. It never blocks.
func (w *watch) changed() {
	select {
	case w.changes <- struct{}{}:
	default:
	}
}

// start starts reporting, until close. It is called once.
func (w *watch) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.done.Go(func() { w.run(ctx) })
}

// close stops reporting, and waits until a report under way has ended.
func (w *watch) close() {
	if w.stop == nil {
		return
	}
	w.stop()
	w.done.Wait()
}

func (w *watch) run(ctx context.Context) {
	ticker := time.NewTicker(statusInterval)
	defer ticker.Stop()
	before := map[string]told{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-w.changes:
			timer := time.NewTimer(settleTime)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			select { // a change that came meanwhile is part of this report
			case <-w.changes:
			default:
			}
		}
		before = w.tell(ctx, before)
	}
}

// told is what was last reported about a source.
type told struct {
	started            time.Time
	refreshed, fetched attempts
	gauges             map[string]float64
	line               line
}

// attempts counts successful and failed attempts.
type attempts struct{ ok, failed uint64 }

func (a attempts) since(b attempts) attempts { return attempts{a.ok - b.ok, a.failed - b.failed} }

// line is what is logged about a source when it changes.
type line struct {
	up, stuck bool
	loaded    time.Time
	entries   int
	serial    uint64
	failure   string
}

// tell reports what all sources serve, and returns it.
func (w *watch) tell(ctx context.Context, before map[string]told) map[string]told {
	within, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	now := map[string]told{}
	for _, s := range w.status() {
		now[s.Name] = w.tellSource(within, &s, before[s.Name])
	}
	for name, was := range before {
		if _, ok := now[name]; !ok {
			w.metrics.gauges(within, name, was.gauges, nil)
		}
	}
	w.announce(slices.Collect(maps.Keys(now)))
	w.metrics.version(within, w.version)
	if w.used != nil {
		w.metrics.load(within, w.used(), memory())
	}
	w.metrics.beat()
	return now
}

// tellSource reports what one source serves, and returns it.
func (w *watch) tellSource(ctx context.Context, s *admission.SourceStatus, was told) told {
	if !was.started.Equal(s.Started) { // a new source of the same name counts from zero
		was.refreshed, was.fetched = attempts{}, attempts{}
	}
	is := told{
		started: s.Started, refreshed: attempts{s.Refreshed, s.Failed}, fetched: attempts{s.Fetched, s.FetchesFailed},
		gauges: gaugesOf(s), line: lineOf(s),
	}
	if is.line != was.line {
		w.logStatus(s, &is.line)
	}
	w.metrics.gauges(ctx, s.Name, was.gauges, is.gauges)
	w.metrics.attempts(metricRefresh, s.Name, is.refreshed.since(was.refreshed))
	if s.Fetches {
		w.metrics.attempts(metricFetch, s.Name, is.fetched.since(was.fetched))
		w.metrics.add(ofUnchecked(s.Name), 0)
	}
	return is
}

// announce sets the expected counters to zero before their first event, once for each configuration.
func (w *watch) announce(names []string) {
	all := map[counter]bool{}
	for _, c := range expected(w.policy(), names) {
		if all[c] = true; !w.announced[c] {
			w.metrics.add(c, 0)
		}
	}
	w.announced = all
}

// memory returns how many bytes of memory Go's runtime has from the operating system. The caches of lists are not
// included, since they are mapped files.
func memory() uint64 {
	sample := []runtimemetrics.Sample{
		{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
	}
	runtimemetrics.Read(sample)
	for _, s := range sample {
		if s.Value.Kind() != runtimemetrics.KindUint64 {
			return 0
		}
	}
	return sample[0].Value.Uint64() - sample[1].Value.Uint64()
}

func lineOf(s *admission.SourceStatus) line {
	l := line{up: s.Up(), stuck: s.Stuck > 0, loaded: s.Loaded, entries: s.Entries, serial: s.Serial}
	if s.Err != nil {
		l.failure = clean(s.Err.Error(), maxLogged)
	}
	return l
}

// logStatus logs what a source serves. It leaves out fields that do not apply to the source.
func (w *watch) logStatus(s *admission.SourceStatus, l *line) {
	args := []any{"source", s.Name, "kind", s.Kind, "up", l.up}
	if !l.loaded.IsZero() {
		args = append(args, "loaded", l.loaded.UTC().Format(time.RFC3339), "entries", l.entries)
	}
	if l.serial != 0 {
		args = append(args, "serial", l.serial)
	}
	if !s.Confirmed.IsZero() {
		args = append(args, "confirmed", s.Confirmed.UTC().Format(time.RFC3339))
	}
	if !s.Expires.IsZero() {
		args = append(args, "expires", s.Expires.UTC().Format(time.RFC3339))
	}
	if !s.Next.IsZero() {
		args = append(args, "next_attempt", s.Next.UTC().Format(time.RFC3339))
	}
	if l.failure != "" {
		args = append(args, "error", l.failure)
	}
	if l.stuck {
		args = append(args, "stuck", s.Stuck)
	}
	level := hclog.Info
	if !l.up || l.stuck {
		level = hclog.Warn
	}
	w.log.Log(level, "Source status", args...)
}

// gaugesOf returns the gauges of a source. A source that loads has no entries, serial or age before its first load.
func gaugesOf(s *admission.SourceStatus) map[string]float64 {
	all := map[string]float64{metricUp: 0, metricStuck: float64(s.Stuck)}
	if s.Up() {
		all[metricUp] = 1
	}
	if s.Loaded.IsZero() {
		return all
	}
	if !s.Confirmed.IsZero() {
		all[metricAge] = max(time.Since(s.Confirmed).Seconds(), 0)
	}
	if !s.Stale.IsZero() {
		all[metricStale] = time.Until(s.Stale).Seconds()
	}
	if !s.Expires.IsZero() {
		all[metricExpires] = time.Until(s.Expires).Seconds()
	}
	all[metricEntries] = float64(s.Entries)
	if s.Serial != 0 {
		all[metricSerial], all[metricSerialLow] = float64(s.Serial), float64(s.Serial%serialLow)
	}
	return all
}
