package server

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
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

// countingMetrics is a SPIRE in the same process.
type countingMetrics struct {
	metricsv1.MetricsClient
	counts map[string]float32
}

func (
	m countingMetrics) IncrCounter(_ context.Context, req *metricsv1.IncrCounterRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	m.counts[strings.Join(req.GetKey(), ".")] += req.GetVal()
	return &emptypb.Empty{}, nil
}

func (
	m countingMetrics) AddSample(context.Context, *metricsv1.AddSampleRequest, ...grpc.CallOption,
) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// A SPIRE that takes no metrics must cost no attestation anything, and neither
// memory nor the shutdown.
func TestMetricsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: hungMetrics{}})
		begun := time.Now()
		for range 3 * metricsQueued {
			m.attested(outcomeRefused, time.Second, &sources.Decision{Denied: []string{"x"}})
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("attestations waited %v", took)
		}
		synctest.Wait()
		if m.dropped < metricsQueued || len(m.events) > metricsQueued {
			t.Errorf("%d queued, %d dropped", len(m.events), m.dropped)
		}
		m.close()
		if took := time.Since(begun); took != 0 {
			t.Errorf("close waited %v", took)
		}
	})
}

// What was dropped is told, or a graph would lie.
func TestMetricsThatWereDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := countingMetrics{counts: map[string]float32{}}
		m := startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: fake})
		defer m.close()
		m.dropped = 7
		m.attested(outcomeAdmitted, time.Second, &sources.Decision{})
		synctest.Wait()
		if fake.counts["tpm.dropped"] != 7 || fake.counts["tpm.attestation"] != 1 || m.dropped != 0 {
			t.Errorf("counters: %v", fake.counts)
		}
	})
}

// slowMetrics is a SPIRE that takes a millisecond for each sample.
type slowMetrics struct{ countingMetrics }

func (slowMetrics) AddSample(
	context.Context, *metricsv1.AddSampleRequest, ...grpc.CallOption,
) (*emptypb.Empty, error) {
	time.Sleep(time.Millisecond)
	return &emptypb.Empty{}, nil
}

// Strangers that come as fast as SPIRE takes samples must not keep the counters
// from it: no alert would see them, nor anybody else, for as long as they come.
func TestMetricsUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := slowMetrics{countingMetrics{counts: map[string]float32{}}}
		m := startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: fake})
		defer m.close()
		const came = 10 * metricsBatch
		for range came {
			m.attested(outcomeMalformed, time.Second, &sources.Decision{})
			m.attested(outcomeMalformed, time.Second, &sources.Decision{})
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if n := fake.counts["tpm.attestation"]; n < came-metricsBatch-1 {
			t.Errorf("of %d attestations %v are told while more come", 2*came, n)
		}
	})
}
