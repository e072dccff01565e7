package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// hungMetrics is a SPIRE that takes no metrics.
type hungMetrics struct{ metricsv1.MetricsClient }

func (hungMetrics) IncrCounter(
	ctx context.Context, _ *metricsv1.IncrCounterRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hungMetrics) AddSample(
	ctx context.Context, _ *metricsv1.AddSampleRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// countingMetrics is a SPIRE that counts what it is told, and how often it is called.
type countingMetrics struct {
	metricsv1.MetricsClient
	counts         map[string]float32
	samples, calls int
	down           atomic.Bool // it takes nothing
}

func (m *countingMetrics) IncrCounter(
	_ context.Context, req *metricsv1.IncrCounterRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	m.calls++
	if m.down.Load() {
		return nil, status.Error(codes.Unavailable, "down")
	}
	m.counts[strings.Join(req.GetKey(), ".")] += req.GetVal()
	return &emptypb.Empty{}, nil
}

func (m *countingMetrics) AddSample(
	context.Context, *metricsv1.AddSampleRequest, ...grpc.CallOption,
) (*emptypb.Empty, error) {
	m.calls++
	m.samples++
	return &emptypb.Empty{}, nil
}

// startCounting starts metrics that tell a countingMetrics.
func startCounting() (*metrics, *countingMetrics) {
	fake := &countingMetrics{counts: map[string]float32{}}
	return startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: fake}), fake
}

// If SPIRE takes no metrics, that must cost no attestation anything, nor any memory, nor delay
// the shutdown for long.
func TestMetricsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: hungMetrics{}})
		begun := time.Now()
		for i := range 2 * maxCounters {
			m.attested(outcomeRefused, time.Second, &policy.Decision{Denied: []string{strconv.Itoa(i)}})
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("attestations waited %v", took)
		}
		time.Sleep(3 * metricsTimeout)
		begun = time.Now()
		m.close()
		if took := time.Since(begun); took > flushTimeout {
			t.Errorf("close waited %v", took)
		}
		dropped := m.counts[counter{name: [2]string{metricDropped}}]
		if len(m.counts) > maxCounters+1 || dropped < maxCounters || len(m.times) > 0 {
			t.Errorf("%d counters and times of %d outcomes wait, %d dropped", len(m.counts), len(m.times), dropped)
		}
	})
}

// The plugin reports later what it could not report at first, and reports the number of those for
// which it had no room; otherwise graphs would be wrong.
func TestMetricsOfASPIREThatWasDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, fake := startCounting()
		defer m.close()
		fake.down.Store(true)
		m.add(counter{name: [2]string{metricDropped}}, 7)
		m.attested(outcomeAdmitted, time.Second, &policy.Decision{})
		time.Sleep(3 * metricsInterval)
		m.attested(outcomeAdmitted, time.Second, &policy.Decision{})
		synctest.Wait()
		fake.down.Store(false)
		time.Sleep(metricsInterval)
		synctest.Wait()
		if fake.counts["tpm.dropped"] != 7 || fake.counts["tpm.attestation"] != 2 {
			t.Errorf("counters: %v", fake.counts)
		}
	})
}

// Stops machines that were admitted unchecked from looking like all others: they are counted
// for each source.
func TestMetricsOfUnchecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, fake := startCounting()
		m.attested(outcomeAdmitted, time.Second, &policy.Decision{Answers: []policy.Answer{
			{Source: "vendors", Verdict: sources.Verdict{Listed: true, Unchecked: "the CRL's host is down"}},
			{Source: "inventory", Verdict: sources.Verdict{Listed: true}},
		}})
		m.close()
		if fake.counts["tpm.source.unchecked"] != 1 || fake.counts["tpm.source"] != 2 {
			t.Errorf("counters: %v", fake.counts)
		}
	})
}

// The plugin reports what it counted in the last moments when it ends; otherwise attestations
// would be missing on a server that is restarted often.
func TestMetricsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, fake := startCounting()
		m.attested(outcomeAdmitted, time.Second, &policy.Decision{})
		m.close()
		if fake.counts["tpm.attestation"] != 1 || fake.samples != 1 {
			t.Errorf("counters: %v, samples: %d", fake.counts, fake.samples)
		}
	})
}

// Strangers that come in thousands must not make the plugin call SPIRE for each of them, which
// used to take a quarter of the CPU of an attestation. Meanwhile the counters must still be
// told, since alerts depend on them.
func TestMetricsUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, fake := startCounting()
		defer m.close()
		const seconds, each = 10, 1000
		for range seconds * each {
			m.attested(outcomeRefused, time.Second, &policy.Decision{
				Denied: []string{"stolen"}, Answers: []policy.Answer{{Source: "list"}},
			})
			time.Sleep(metricsInterval / each)
		}
		synctest.Wait()
		if n := fake.counts["tpm.attestation"]; n < (seconds-1)*each {
			t.Errorf("of %d attestations %v are told while more come", seconds*each, n)
		}
		if most := seconds * (3 + maxSamples); fake.calls > most || fake.samples < (seconds-1)*maxSamples {
			t.Errorf("%d calls, of them %d samples, in %d seconds", fake.calls, fake.samples, seconds)
		}
	})
}

// Each attestation has the same chance to be timed, the last as well as the first: if only the
// first of each second were timed, a storm would look calm.
func TestTimesAreChosenAtRandom(t *testing.T) {
	const rounds, all = 2000, 10 * maxSamples
	var early int
	for range rounds {
		var s times
		for i := range all {
			s.add(time.Duration(i))
		}
		if len(s.chosen) != maxSamples {
			t.Fatalf("%d are chosen", len(s.chosen))
		}
		for _, d := range s.chosen {
			if d < all/2 {
				early++
			}
		}
	}
	if share := float64(early) / (rounds * maxSamples); share < 0.45 || share > 0.55 {
		t.Errorf("%.2f of the chosen are of the first half", share)
	}
}

// A machine that nobody waited for, because strangers take all places, must not be counted as if
// its source were broken: the remedy is different.
func TestReasonOfACrowd(t *testing.T) {
	d := policy.Decision{Outcome: policy.Unavailable, Answers: []policy.Answer{{Source: "slow", Err: errors.New("down")}}}
	if f := notAdmitted(&d); f.reason != reasonNoRule {
		t.Errorf("a source that is down is counted as %q", f.reason)
	}
	d.Answers[0].Err = fmt.Errorf("slow: %w", admission.ErrCrowded)
	if f := notAdmitted(&d); f.reason != reasonStrangers {
		t.Errorf("a crowd is counted as %q", f.reason)
	}
}

// Which share of a fleet quotes its boot, sends a log or has a DevID shows whether a rule may
// require it. Each is counted once, and what nobody has proved is zero before it grows.
func TestMetricsOfEvidence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{values: map[string]float32{}}
		m := startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: b})
		for _, c := range expected(policy.Policy{}, nil) {
			m.add(c, 0)
		}
		m.proved(nil, nil)
		m.proved(&sources.Boot{}, nil)
		m.proved(&sources.Boot{Log: &sources.BootLog{}}, &sources.DevID{})
		m.explain(outcomeAdmitted, "")
		m.explain(outcomeUnavailable, "") // a failure that forgets its reason is counted all the same
		m.close()
		for name, want := range map[string]float32{
			"tpm.attestation.evidence evidence=quote":                     2,
			"tpm.attestation.evidence evidence=event_log":                 1,
			"tpm.attestation.evidence evidence=devid":                     1,
			"tpm.attestation.reason outcome=refused reason=other":         0,
			"tpm.attestation.reason outcome=unavailable reason=other":     1,
			"tpm.attestation.reason outcome=refused reason=no_allow_rule": 0,
		} {
			if got, told := b.values[name]; got != want || !told {
				t.Errorf("%s is %v, told: %v, want %v", name, got, told, want)
			}
		}
	})
}
