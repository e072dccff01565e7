package server

import (
	"context"
	"math"
	"sync"
	"time"

	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The metrics. SPIRE puts its own name in front. All labels take their values
// from the configuration or from constants, so that no agent can make more.
// SPIRE's Prometheus forgets nothing that it was once told, until spire-server
// restarts: a gauge that no longer applies is told as NaN, and a counter as zero
// before its first event, which is growth then.
//
//   - tpm.attestation counts attestations by outcome.
//   - tpm.attestation.rule counts them by outcome and by each rule that decided,
//     with its effect, allow or deny.
//   - tpm.attestation.trial counts them by each rule on trial, with its effect and
//     what it came to.
//   - tpm.attestation.elapsed_time is how long they took, in milliseconds, by
//     outcome.
//   - tpm.source counts answers by source and verdict.
//   - tpm.source.up, .entries, .serial, .serial_low, .age and .stuck are what each
//     source serves, tpm.source.refresh counts its attempts to load, and
//     tpm.source.fetch those to ask the network for what evidence names; see watch.
//   - tpm.ek.alternating counts attestations that show that an EK is in several
//     machines; see addresses.
//   - tpm.heartbeat counts how often the gauges were told: it grows for as long as
//     the plugin lives.
//   - tpm.dropped counts attestations that are missing above, because SPIRE took
//     metrics more slowly than machines attested.
const (
	metricRoot    = "tpm"
	metricAttest  = "attestation"
	metricRule    = "rule"
	metricTrial   = "trial"
	metricElapsed = "elapsed_time"
	metricSource  = "source"
	metricDropped = "dropped"
	metricBeat    = "heartbeat"

	metricUp          = "up"
	metricEntries     = "entries"
	metricSerial      = "serial"
	metricSerialLow   = "serial_low"
	metricAge         = "age"
	metricExpires     = "expires"
	metricStuck       = "stuck"
	metricRefresh     = "refresh"
	metricFetch       = "fetch"
	metricEK          = "ek"
	metricAlternating = "alternating"
)

// The limits of metrics.
const (
	metricsQueued = 1024
	// metricsBatch is how many attestations are counted together at most.
	metricsBatch   = 128
	metricsTimeout = 5 * time.Second
)

// metrics hands measurements to SPIRE, one after another, without anybody
// waiting for it. The nil metrics measure nothing.
type metrics struct {
	client *metricsv1.MetricsServiceClient
	events chan event
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	dropped int
}

// event is what is measured of one attestation. It shares the decision's slices,
// which nobody changes any more.
type event struct {
	outcome     outcome
	elapsed     time.Duration
	allow, deny []string
	trials      []sources.Trial
	answers     []sources.Answer
}

// startMetrics starts to hand measurements to SPIRE until close.
func startMetrics(client *metricsv1.MetricsServiceClient) *metrics {
	ctx, cancel := context.WithCancel(context.Background())
	m := &metrics{client: client, events: make(chan event, metricsQueued), stop: cancel}
	m.done.Go(func() { m.run(ctx) })
	return m
}

// close stops it and waits. What is queued is lost.
func (m *metrics) close() {
	if m == nil {
		return
	}
	m.stop()
	m.done.Wait()
}

// attested measures one attestation. It never waits.
func (m *metrics) attested(o outcome, elapsed time.Duration, d *sources.Decision) {
	if m == nil {
		return
	}
	e := event{outcome: o, elapsed: elapsed, allow: d.Rules, trials: d.Trials, answers: d.Answers}
	switch o {
	case outcomeRefused:
		e.deny = d.Denied
	case outcomeUnavailable:
		e.deny = d.MaybeDenied
	}
	select {
	case m.events <- e:
	default:
		m.mu.Lock()
		m.dropped++
		m.mu.Unlock()
	}
}

func (m *metrics) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-m.events:
			m.emit(ctx, e)
		}
	}
}

// counter is a counter with its labels.
type counter struct {
	name   [2]string
	labels [3][2]string
}

// emit hands over an event, and counts together with it what has queued up
// meanwhile, metricsBatch of them at most: counters are told under load too.
func (m *metrics) emit(ctx context.Context, e event) {
	counts := map[counter]int{}
	for n, more := 1, true; more; n++ {
		m.sample(ctx, e)
		e.count(counts)
		if n == metricsBatch || ctx.Err() != nil {
			break
		}
		select {
		case e = <-m.events:
		default:
			more = false
		}
	}
	m.mu.Lock()
	if m.dropped > 0 {
		counts[counter{name: [2]string{metricDropped}}] += m.dropped
		m.dropped = 0
	}
	m.mu.Unlock()
	for c, n := range counts {
		m.add(ctx, c, float32(n))
	}
}

// count counts what happened in one attestation.
func (e *event) count(counts map[counter]int) {
	counts[ofOutcome(e.outcome)]++
	for _, name := range e.allow {
		counts[ofRule(e.outcome, effectAllow, name)]++
	}
	for _, name := range e.deny {
		counts[ofRule(e.outcome, effectDeny, name)]++
	}
	for _, t := range e.trials {
		effect := effectAllow
		if t.Deny {
			effect = effectDeny
		}
		counts[ofTrial(effect, t.Rule, resultOf(t))]++
	}
	for _, a := range e.answers {
		counts[ofAnswer(a.Source, a.Result())]++
	}
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

func resultOf(t sources.Trial) string {
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

// add adds to one counter. An error is no reason to do anything: SPIRE is then
// going away or does not take metrics.
func (m *metrics) add(ctx context.Context, c counter, n float32) {
	req := &metricsv1.IncrCounterRequest{Key: []string{metricRoot}, Val: n}
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
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	_, _ = m.client.IncrCounter(ctx, req)
}

// attempts adds to a source's attempts to load (metricRefresh) or to fetch what
// evidence names (metricFetch). The nil metrics measure nothing.
func (m *metrics) attempts(ctx context.Context, name, source string, n attempts) {
	if m == nil {
		return
	}
	of := func(result string) counter {
		return counter{[2]string{metricSource, name}, [3][2]string{{"source", source}, {"result", result}}}
	}
	m.add(ctx, of("ok"), float32(n.ok))
	m.add(ctx, of("failed"), float32(n.failed))
}

// alternated adds to the attestations of EKs from several addresses in turn.
func (m *metrics) alternated(ctx context.Context, n int64) {
	if m == nil {
		return
	}
	m.add(ctx, counter{name: [2]string{metricEK, metricAlternating}}, float32(n))
}

// beat tells that the plugin lives.
func (m *metrics) beat(ctx context.Context) {
	if m == nil {
		return
	}
	m.add(ctx, counter{name: [2]string{metricBeat}}, 1)
}

// announce tells counters before their first event.
func (m *metrics) announce(ctx context.Context, counters []counter) {
	if m == nil {
		return
	}
	for _, c := range counters {
		m.add(ctx, c, 0)
	}
}

// expected returns the counters of attestations that alerts are written on.
func expected(policy sources.Policy, sourceNames []string) []counter {
	var all []counter
	for _, o := range outcomes {
		all = append(all, ofOutcome(o))
	}
	for _, rules := range []struct {
		effect string
		of     []sources.Rule
		decide outcome
	}{{effectAllow, policy.Allow, outcomeAdmitted}, {effectDeny, policy.Deny, outcomeRefused}} {
		for _, r := range rules.of {
			if !r.Trial {
				all = append(all, ofRule(rules.decide, rules.effect, r.Name))
				continue
			}
			for _, result := range []string{resultHolds, resultNot, resultUnsure} {
				all = append(all, ofTrial(rules.effect, r.Name, result))
			}
		}
	}
	for _, name := range sourceNames {
		all = append(all, ofAnswer(name, "cannot_tell"))
	}
	return all
}

// gauges sets the numbers of a source. Those that were told before and apply no
// more become NaN, by which no alert fires.
func (m *metrics) gauges(ctx context.Context, source string, before, now map[string]float64) {
	for name, value := range now {
		m.gauge(ctx, name, source, value)
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			m.gauge(ctx, name, source, math.NaN())
		}
	}
}

// gauge sets a number of a source.
func (m *metrics) gauge(ctx context.Context, name, source string, value float64) {
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	_, _ = m.client.SetGauge(ctx, &metricsv1.SetGaugeRequest{
		Key:    []string{metricRoot, metricSource, name},
		Val:    float32(value),
		Labels: []*metricsv1.Label{{Name: "source", Value: source}},
	})
}

// sample hands over how long one attestation took.
func (m *metrics) sample(ctx context.Context, e event) {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	_, _ = m.client.AddSample(ctx, &metricsv1.AddSampleRequest{
		Key:    []string{metricRoot, metricAttest, metricElapsed},
		Val:    float32(e.elapsed.Seconds() * 1000),
		Labels: []*metricsv1.Label{{Name: "outcome", Value: string(e.outcome)}},
	})
}
