package composer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"

	"github.com/spire-tpm/spire-tpm-attestor/server/guard"
)

// The counter tpm.composer counts SVIDs about which the composer has decided, by outcome.
const (
	metricRoot     = "tpm"
	metricComposer = "composer"
)

const (
	// metricsInterval is how often the plugin reports its counts to SPIRE.
	metricsInterval = time.Second
	// metricsTimeout bounds one report, and flushTimeout the last one, when the plugin closes.
	metricsTimeout = 5 * time.Second
	flushTimeout   = time.Second
)

// An outcome is what the composer has decided about an SVID.
type outcome int

const (
	allowed    outcome = iota // the key was handed over
	otherKey                  // another key was handed over
	noKey                     // no key was handed over, or it was used, or it has expired
	notAnAgent                // a workload with the ID of an agent
	malformed                 // the request's SPIFFE ID cannot be parsed
)

// outcomes are the values of the label outcome.
var outcomes = [...]string{"allowed", "other_key", "no_key", "not_an_agent", "malformed"}

// metrics counts in memory and reports to SPIRE once in each interval, so that no call waits for SPIRE. Nil
// metrics count nothing.
type metrics struct {
	client *metricsv1.MetricsServiceClient
	log    hclog.Logger
	counts [len(outcomes)]atomic.Int64 // what was not reported to SPIRE yet
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// startMetrics starts to report counts to SPIRE, until close.
func startMetrics(client *metricsv1.MetricsServiceClient, log hclog.Logger) *metrics {
	ctx, cancel := context.WithCancel(context.Background())
	m := &metrics{client: client, log: log, stop: cancel}
	m.done.Go(func() { m.run(ctx) })
	return m
}

// count counts an outcome. It never waits.
func (m *metrics) count(o outcome) {
	if m != nil {
		m.counts[o].Add(1)
	}
}

// close reports the remaining counts to SPIRE, within flushTimeout, and stops.
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
	var told [len(outcomes)]bool
	for {
		select {
		case <-ctx.Done():
			m.tell(context.WithoutCancel(ctx), flushTimeout, &told)
			return
		case <-ticker.C:
			m.tell(ctx, metricsTimeout, &told)
		}
	}
}

// tell reports to SPIRE what has been counted since the last call. It reports each outcome at least once, as zero if
// need be, so that the first event shows as growth. A count that SPIRE does not accept is reported again the next time.
// A panic ends only this call.
func (m *metrics) tell(ctx context.Context, limit time.Duration, told *[len(outcomes)]bool) {
	defer guard.Recover(m.log, nil, "metrics")
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for o, name := range outcomes {
		n := m.counts[o].Load()
		if n == 0 && told[o] {
			continue
		}
		_, err := m.client.IncrCounter(ctx, &metricsv1.IncrCounterRequest{
			Key: []string{metricRoot, metricComposer}, Val: float32(n),
			Labels: []*metricsv1.Label{{Name: "outcome", Value: name}},
		})
		if err == nil {
			m.counts[o].Add(-n)
			told[o] = true
		}
	}
}
