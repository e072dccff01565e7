package composer

import (
	"context"
	"crypto/sha256"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	composerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// fakeMetrics is SPIRE's Metrics host service.
type fakeMetrics struct {
	metricsv1.MetricsClient
	counts map[string]float32
	calls  int
	does   atomic.Value // one of those below, or nothing
}

const (
	hangs  = "hangs"
	down   = "is down"
	panics = "panics"
	works  = "works"
)

func (m *fakeMetrics) IncrCounter(
	ctx context.Context, req *metricsv1.IncrCounterRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	switch m.does.Load() {
	case hangs:
		<-ctx.Done()
		return nil, ctx.Err()
	case down:
		return nil, status.Error(codes.Unavailable, "down")
	case panics:
		panic("a bug")
	}
	m.calls++
	l := req.GetLabels()
	if len(req.GetKey()) != 2 || req.GetKey()[0] != "tpm" || req.GetKey()[1] != "composer" || l[0].GetName() != "outcome" {
		panic(req.String())
	}
	m.counts[l[0].GetValue()] += req.GetVal()
	return &emptypb.Empty{}, nil
}

// withMetrics returns a plugin that counts, and the SPIRE that it tells.
func withMetrics() (*Plugin, *fakeMetrics) {
	p, fake := New(), &fakeMetrics{counts: map[string]float32{}}
	p.metrics = startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: fake}, hclog.NewNullLogger())
	return p, fake
}

const agentID = "spiffe://example.org/spire/agent/tpm/0"

func askAgent(p *Plugin, id string) {
	_, _ = p.ComposeAgentX509SVID(context.Background(), &composerv1.ComposeAgentX509SVIDRequest{
		SpiffeId: id, PublicKey: []byte("a key"),
	})
}

// next waits for the next report to SPIRE.
func next() {
	time.Sleep(metricsInterval)
	synctest.Wait()
}

// There is an alert for each way to be refused, and it sees even the first event, since each outcome is reported as
// zero before. Requests that the composer does not decide about are not counted, and an idle composer reports nothing.
func TestOutcomesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, fake := withMetrics()
		defer p.Close()
		next()
		for _, o := range outcomes {
			if n, there := fake.counts[o]; !there || n != 0 {
				t.Errorf("before the first event, %s is %v, %t", o, n, there)
			}
		}
		askAgent(p, "spiffe://example.org/spire/agent/join_token/x")
		next()
		if fake.calls != len(outcomes) {
			t.Errorf("SPIRE was called %d times", fake.calls)
		}
		p.table.Put(agentID, handover.Any())
		askAgent(p, agentID)
		p.table.Put(agentID, handover.Only(sha256.Sum256([]byte("another key"))))
		for range 2 {
			askAgent(p, agentID)
		}
		askAgent(p, agentID+"1")
		askAgent(p, "no ID")
		_, _ = p.ComposeWorkloadX509SVID(t.Context(), &composerv1.ComposeWorkloadX509SVIDRequest{SpiffeId: agentID})
		_, _ = p.ComposeWorkloadJWTSVID(t.Context(), &composerv1.ComposeWorkloadJWTSVIDRequest{SpiffeId: agentID})
		next()
		for o, want := range map[string]float32{
			"allowed": 1, "other_key": 2, "no_key": 1, "malformed": 1, "not_an_agent": 2,
		} {
			if fake.counts[o] != want {
				t.Errorf("%s is %v, want %v", o, fake.counts[o], want)
			}
		}
	})
}

// A SPIRE that accepts no metrics must delay no SVID and no shutdown: while the composer hangs, nobody gets an SVID.
// The composer reports later what SPIRE did not accept, even after a panic.
func TestMetricsNeverHoldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, fake := withMetrics()
		fake.does.Store(hangs)
		time.Sleep(2 * metricsInterval) // a call hangs now
		begun := time.Now()
		for range 1000 {
			askAgent(p, agentID)
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("the calls waited %v", took)
		}
		time.Sleep(metricsTimeout)
		synctest.Wait()
		fake.does.Store(down)
		time.Sleep(2 * metricsTimeout)
		synctest.Wait()
		fake.does.Store(panics)
		next()
		askAgent(p, agentID)
		next()
		fake.does.Store(works)
		next()
		if n := fake.counts["no_key"]; n != 1001 {
			t.Errorf("%v are told", n)
		}
		fake.does.Store(hangs)
		begun = time.Now()
		p.Close()
		if took := time.Since(begun); took > flushTimeout {
			t.Errorf("Close waited %v", took)
		}
	})
}
