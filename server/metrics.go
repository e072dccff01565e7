package server

import (
	"cmp"
	"context"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// The metrics. SPIRE puts its own name in front of each. All labels take their values from the
// configuration or from constants, so that no agent can add more.
//
// SPIRE's Prometheus forgets nothing until spire-server restarts. So a gauge that no longer
// applies is set to NaN, and a counter is set to zero before its first event, so that the first
// event shows as growth.
//
//   - tpm.attestation counts attestations by outcome.
//   - tpm.attestation.rule counts them by outcome and by each rule that decided, with its
//     effect, allow or deny.
//   - tpm.attestation.trial counts them by each rule on trial, with its effect and its
//     result.
//   - tpm.attestation.reason counts those that were refused, or for which something could not
//     tell, by outcome and reason.
//   - tpm.attestation.evidence counts admitted machines by what they have proved besides
//     their EK.
//   - tpm.attestation.svid_key counts admitted agents by svid_key, tpm or none, unless the
//     configuration's svid_key is off.
//   - tpm.attestation.elapsed_time is how long they took, in milliseconds, by outcome: for
//     each outcome, maxSamples in metricsInterval, chosen at random.
//   - tpm.source counts answers by source and verdict.
//   - tpm.source.up, .entries, .serial, .serial_low, .age, .stale, .expires and .stuck are what each source
//     serves, tpm.source.refresh counts its attempts to load, and tpm.source.fetch its
//     attempts to fetch what evidence names; see watch.
//   - tpm.source.unchecked counts answers by which a source lists a TPM although it could
//     not check whether its certificates have been revoked.
//   - tpm.ek.alternating counts attestations that show that an EK is in several machines;
//     see addresses.
//   - tpm.configuration counts configurations by result; a refused configuration leaves
//     the previous one in use.
//   - tpm.version is 1, with the plugin's version as a label.
//   - tpm.limit.used is how much of each limit of the server is in use, and tpm.memory how
//     many bytes of memory the plugin has; see load.
//   - tpm.heartbeat counts how often the gauges were set: it grows for as long as the
//     plugin lives.
//   - tpm.dropped counts events that are missing above, because SPIRE did not accept metrics and
//     there was no room to keep more counters.
const (
	metricRoot    = "tpm"
	metricAttest  = "attestation"
	metricRule    = "rule"
	metricTrial   = "trial"
	metricReason  = "reason"
	metricProved  = "evidence"
	metricSVIDKey = "svid_key"
	metricElapsed = "elapsed_time"
	metricSource  = "source"
	metricDropped = "dropped"
	metricBeat    = "heartbeat"
	metricConfig  = "configuration"
	metricVersion = "version"
	metricLimit   = "limit"
	metricUsed    = "used"
	metricMemory  = "memory"

	metricUp          = "up"
	metricEntries     = "entries"
	metricSerial      = "serial"
	metricSerialLow   = "serial_low"
	metricAge         = "age"
	metricStale       = "stale"
	metricExpires     = "expires"
	metricStuck       = "stuck"
	metricRefresh     = "refresh"
	metricFetch       = "fetch"
	metricUnchecked   = "unchecked"
	metricEK          = "ek"
	metricAlternating = "alternating"
)

// The limits of metrics.
const (
	// metricsInterval is how often SPIRE is told what was counted: a call costs SPIRE and
	// the plugin as much as a large part of an attestation.
	metricsInterval = time.Second
	// metricsTimeout limits one report of everything that was counted.
	metricsTimeout = 5 * time.Second
	// flushTimeout limits the last report, since a shutdown waits for it.
	flushTimeout = time.Second
	// maxSamples is how many attestations of one outcome are timed in an interval.
	maxSamples = 4
	// maxCounters is how many counters are kept until SPIRE accepts them: twice as many as the largest
	// configuration has.
	maxCounters = 8192
)

// metrics counts in memory and reports to SPIRE once every metricsInterval, so that no attestation waits for SPIRE.
// A nil *metrics does nothing. It is safe for concurrent use.
type metrics struct {
	client *metricsv1.MetricsServiceClient
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	counts map[counter]int
	times  map[outcome]*times
}

// counter is a counter with its labels.
type counter struct {
	name   [2]string
	labels [3][2]string
}

// times is a random sample of how long attestations took.
type times struct {
	all    int
	chosen []time.Duration
}

// startMetrics starts reporting to SPIRE, until close.
func startMetrics(client *metricsv1.MetricsServiceClient) *metrics {
	ctx, cancel := context.WithCancel(context.Background())
	m := &metrics{client: client, stop: cancel, counts: map[counter]int{}, times: map[outcome]*times{}}
	m.done.Go(func() { m.run(ctx) })
	return m
}

// close reports the rest to SPIRE, within flushTimeout, and stops.
func (m *metrics) close() {
	if m == nil {
		return
	}
	m.stop()
	m.done.Wait()
}

func (m *metrics) run(ctx context.Context) {
	ticker := time.NewTicker(metricsInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			m.tell(context.WithoutCancel(ctx), flushTimeout)
			return
		case <-ticker.C:
			m.tell(ctx, metricsTimeout)
		}
	}
}

// attested measures one attestation. It never waits for SPIRE.
func (m *metrics) attested(o outcome, elapsed time.Duration, d *policy.Decision) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addLocked(ofOutcome(o), 1)
	for _, name := range d.Rules {
		m.addLocked(ofRule(o, effectAllow, name), 1)
	}
	for _, name := range deniedBy(o, d) {
		m.addLocked(ofRule(o, effectDeny, name), 1)
	}
	for _, t := range d.Trials {
		effect := effectAllow
		if t.Deny {
			effect = effectDeny
		}
		m.addLocked(ofTrial(effect, t.Rule, resultOf(t)), 1)
	}
	for _, a := range d.Answers {
		m.addLocked(ofAnswer(a.Source, a.Result()), 1)
		if a.Verdict.Unchecked != "" {
			m.addLocked(ofUnchecked(a.Source), 1)
		}
	}
	if m.times[o] == nil {
		m.times[o] = &times{}
	}
	m.times[o].add(elapsed)
}

// explain counts the reason for an outcome, unless the outcome has no reasons.
func (m *metrics) explain(o outcome, why reason) {
	if len(reasons[o]) == 0 {
		return
	}
	m.add(ofReason(o, cmp.Or(why, reasonOther)), 1)
}

// What an admitted machine may have proved besides its EK.
const (
	evidenceQuote = "quote"
	evidenceLog   = "event_log"
	evidenceDevID = "devid"
)

// proved counts what an admitted machine has proved besides its EK.
func (m *metrics) proved(b *sources.Boot, d *sources.DevID) {
	if b != nil {
		m.add(ofEvidence(evidenceQuote), 1)
		if b.Log != nil {
			m.add(ofEvidence(evidenceLog), 1)
		}
	}
	if d != nil {
		m.add(ofEvidence(evidenceDevID), 1)
	}
}

// deniedBy returns the deny rules that decided.
func deniedBy(o outcome, d *policy.Decision) []string {
	switch o {
	case outcomeRefused:
		return d.Denied
	case outcomeUnavailable:
		return d.MaybeDenied
	default:
		return nil
	}
}

// add adds n to a counter. n = 0 makes the counter known to SPIRE before its first event.
func (m *metrics) add(c counter, n int) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addLocked(c, n)
}

func (m *metrics) addLocked(c counter, n int) {
	if _, known := m.counts[c]; !known && len(m.counts) >= maxCounters {
		c = counter{name: [2]string{metricDropped}}
	}
	m.counts[c] += n
}

// add adds a duration to the sample. If the sample is full, it may replace another, so that
// each duration is kept with the same probability (Vitter's algorithm R).
func (t *times) add(d time.Duration) {
	t.all++
	if len(t.chosen) < maxSamples {
		t.chosen = append(t.chosen, d)
		return
	}
	if i := rand.IntN(t.all); i < maxSamples { //nolint:gosec // a choice of samples is no secret
		t.chosen[i] = d
	}
}

// tell reports to SPIRE what has been counted since the last call. A count that SPIRE does not accept is reported
// again the next time. If SPIRE accepts a count but answers too late, it is counted twice.
func (m *metrics) tell(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m.mu.Lock()
	counts, all := m.counts, m.times
	m.counts, m.times = map[counter]int{}, map[outcome]*times{}
	m.mu.Unlock()
	for c, n := range counts {
		if err := m.incr(ctx, c, n); err != nil {
			m.add(c, n)
		}
	}
	for o, t := range all {
		for _, d := range t.chosen {
			m.sample(ctx, o, d)
		}
	}
}

func (m *metrics) incr(ctx context.Context, c counter, n int) error {
	req := &metricsv1.IncrCounterRequest{Key: []string{metricRoot}, Val: float32(n)}
	for _, part := range c.name {
		if part != "" {
			req.Key = append(req.Key, part)
		}
	}
	for _, l := range c.labels {
		if l[0] != "" {
			req.Labels = append(req.Labels, &metricsv1.Label{Name: l[0], Value: l[1]})
		}
	}
	_, err := m.client.IncrCounter(ctx, req)
	return err
}

// sample reports how long one attestation took. A sample that SPIRE does not accept is lost: there are many others.
func (m *metrics) sample(ctx context.Context, o outcome, elapsed time.Duration) {
	_, _ = m.client.AddSample(ctx, &metricsv1.AddSampleRequest{
		Key:    []string{metricRoot, metricAttest, metricElapsed},
		Val:    float32(elapsed.Seconds() * 1000),
		Labels: []*metricsv1.Label{{Name: "outcome", Value: string(o)}},
	})
}

// The effects of rules.
const (
	effectAllow = "allow"
	effectDeny  = "deny"
)

// The results of rules on trial.
const (
	resultHolds  = "holds"
	resultNot    = "holds_not"
	resultUnsure = "might_hold"
)

func resultOf(t policy.Trial) string {
	switch {
	case t.Holds:
		return resultHolds
	case t.Unsure:
		return resultUnsure
	}
	return resultNot
}

func ofOutcome(o outcome) counter {
	return counter{[2]string{metricAttest}, [3][2]string{{"outcome", string(o)}}}
}

func ofReason(o outcome, why reason) counter {
	return counter{
		[2]string{metricAttest, metricReason}, [3][2]string{{"outcome", string(o)}, {"reason", string(why)}},
	}
}

func ofEvidence(what string) counter {
	return counter{[2]string{metricAttest, metricProved}, [3][2]string{{"evidence", what}}}
}

func ofSVIDKey(in string) counter {
	return counter{[2]string{metricAttest, metricSVIDKey}, [3][2]string{{"svid_key", in}}}
}

func ofRule(o outcome, effect, rule string) counter {
	return counter{
		[2]string{metricAttest, metricRule},
		[3][2]string{{"outcome", string(o)}, {"effect", effect}, {"rule", rule}},
	}
}

func ofTrial(effect, rule, result string) counter {
	return counter{
		[2]string{metricAttest, metricTrial},
		[3][2]string{{"effect", effect}, {"rule", rule}, {"result", result}},
	}
}

func ofAnswer(source, verdict string) counter {
	return counter{[2]string{metricSource}, [3][2]string{{"source", source}, {"verdict", verdict}}}
}

func ofUnchecked(source string) counter {
	return counter{[2]string{metricSource, metricUnchecked}, [3][2]string{{"source", source}}}
}

// attempts counts a source's attempts to load (metricRefresh), or to fetch what evidence names (metricFetch).
func (m *metrics) attempts(name, source string, n attempts) {
	of := func(result string) counter {
		return counter{[2]string{metricSource, name}, [3][2]string{{"source", source}, {"result", result}}}
	}
	m.add(of("ok"), int(n.ok))
	m.add(of("failed"), int(n.failed))
}

func ofAlternating() counter { return counter{name: [2]string{metricEK, metricAlternating}} }

// The results of configurations.
const (
	configAccepted = "ok"
	configRefused  = "refused"
)

func ofConfig(result string) counter {
	return counter{[2]string{metricConfig}, [3][2]string{{"result", result}}}
}

// version reports the plugin's version.
func (m *metrics) version(ctx context.Context, version string) {
	if version != "" {
		m.gauge(ctx, 1, "version", version, metricVersion)
	}
}

// beat reports that the plugin is alive.
func (m *metrics) beat() { m.add(counter{name: [2]string{metricBeat}}, 1) }

// expected returns the counters that people write alerts on, except those of sources' attempts.
func expected(rules policy.Policy, sourceNames []string) []counter {
	all := []counter{ofAlternating(), ofConfig(configAccepted), ofConfig(configRefused)}
	for _, o := range outcomes {
		all = append(all, ofOutcome(o))
		for _, why := range reasons[o] {
			all = append(all, ofReason(o, why))
		}
	}
	for _, what := range []string{evidenceQuote, evidenceLog, evidenceDevID} {
		all = append(all, ofEvidence(what))
	}
	for _, side := range []struct {
		effect string
		of     []policy.Rule
		decide outcome
	}{{effectAllow, rules.Allow, outcomeAdmitted}, {effectDeny, rules.Deny, outcomeRefused}} {
		for _, r := range side.of {
			if !r.Trial {
				all = append(all, ofRule(side.decide, side.effect, r.Name))
				continue
			}
			for _, result := range []string{resultHolds, resultNot, resultUnsure} {
				all = append(all, ofTrial(side.effect, r.Name, result))
			}
		}
	}
	for _, name := range sourceNames {
		all = append(all, ofAnswer(name, "cannot_tell"))
	}
	return all
}

// gauges sets the gauges of a source. Gauges that were set before and no longer apply become NaN, which fires no
// alert.
func (m *metrics) gauges(ctx context.Context, source string, before, now map[string]float64) {
	for name, value := range now {
		m.gauge(ctx, value, "source", source, metricSource, name)
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			m.gauge(ctx, math.NaN(), "source", source, metricSource, name)
		}
	}
}

// load reports how much of each limit is in use, from 0 to 1, and how much memory the process has.
func (m *metrics) load(ctx context.Context, used map[reason]float64, memory uint64) {
	for limit, share := range used {
		m.gauge(ctx, share, "limit", strings.TrimPrefix(string(limit), "too_many_"), metricLimit, metricUsed)
	}
	m.gauge(ctx, float64(memory), "", "", metricMemory)
}

// gauge sets a gauge with one label, or without labels if label is empty.
func (m *metrics) gauge(ctx context.Context, value float64, label, of string, name ...string) {
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	req := &metricsv1.SetGaugeRequest{Key: append([]string{metricRoot}, name...), Val: float32(value)}
	if label != "" {
		req.Labels = []*metricsv1.Label{{Name: label, Value: of}}
	}
	_, _ = m.client.SetGauge(ctx, req)
}
