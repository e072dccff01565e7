package server_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
)

// fakeMetrics is SPIRE's Metrics host service.
type fakeMetrics struct {
	metricsv1.UnimplementedMetricsServer
	mu      sync.Mutex
	counts  map[string]float32 // and how many samples, behind "sample "
	changed chan struct{}
}

func newFakeMetrics() *fakeMetrics {
	return &fakeMetrics{counts: map[string]float32{}, changed: make(chan struct{}, 1)}
}

func (m *fakeMetrics) server() pluginsdk.ServiceServer { return metricsv1.MetricsServiceServer(m) }

func (m *fakeMetrics) IncrCounter(_ context.Context, req *metricsv1.IncrCounterRequest) (*emptypb.Empty, error) {
	m.add(metricName(req.GetKey(), req.GetLabels()), req.GetVal())
	return &emptypb.Empty{}, nil
}

func (m *fakeMetrics) AddSample(_ context.Context, req *metricsv1.AddSampleRequest) (*emptypb.Empty, error) {
	m.add("sample "+metricName(req.GetKey(), req.GetLabels()), 1)
	return &emptypb.Empty{}, nil
}

// SetGauge keeps the gauges that belong to no source.
func (m *fakeMetrics) SetGauge(_ context.Context, req *metricsv1.SetGaugeRequest) (*emptypb.Empty, error) {
	if req.GetKey()[1] != "source" {
		m.add("gauge "+metricName(req.GetKey(), req.GetLabels()), req.GetVal())
	}
	return &emptypb.Empty{}, nil
}

func (m *fakeMetrics) add(name string, n float32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[name] += n
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

func metricName(key []string, labels []*metricsv1.Label) string {
	name := []string{strings.Join(key, ".")}
	for _, l := range labels {
		name = append(name, l.GetName()+"="+l.GetValue())
	}
	return strings.Join(name, " ")
}

// await waits until a counter has a value.
func (m *fakeMetrics) await(t *testing.T, name string, want float32) {
	t.Helper()
	for {
		m.mu.Lock()
		got := m.counts[name]
		m.mu.Unlock()
		if got >= want {
			return
		}
		select {
		case <-m.changed:
		case <-time.After(time.Minute):
			t.Fatalf("%s is %v, want %v: %v", name, got, want, m.counts)
		}
	}
}

// Alerts depend on these: attestations by outcome and rule, answers by source, and time; and no
// label may take a value that an agent could choose.
func TestMetrics(t *testing.T) {
	fake := newFakeMetrics()
	p := serve(t, fake.server())
	good := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	stolen := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
	stranger := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 2})
	allow, deny, gone := hashDir(t, good, stolen), hashDir(t, stolen), hashDir(t)
	list(t, deny, "marker", "")
	text := func(deny string) string {
		return oneHashDir(allow) + fmt.Sprintf(`
			source "hash_dir" "stolen" { path = %q marker = "marker" }
			allow "fleet" { any = ["factory"] }
			deny "stolen" { any = ["stolen"] }`, deny)
	}
	p.configure(t, text(deny))
	for _, tpm := range []*attestortest.TPM{good, stolen, stranger} {
		_, _ = p.attestTPM(t, tpm)
	}
	_, _ = p.attest(t, []byte("{}"), nil)
	_, _ = p.attest(t, good.Payload(t), fixed(`{"Secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`))
	p.configure(t, text(gone))
	_, _ = p.attestTPM(t, good)

	want := map[string]float32{
		"tpm.attestation outcome=admitted":                                 1,
		"tpm.attestation outcome=refused":                                  2,
		"tpm.attestation outcome=malformed":                                1,
		"tpm.attestation outcome=challenge_failed":                         1,
		"tpm.attestation outcome=unavailable":                              1,
		"tpm.attestation.reason outcome=refused reason=deny_rule":          1,
		"tpm.attestation.reason outcome=refused reason=no_allow_rule":      1,
		"tpm.attestation.reason outcome=unavailable reason=deny_rule":      1,
		"tpm.attestation.rule outcome=admitted effect=allow rule=fleet":    1,
		"tpm.attestation.rule outcome=refused effect=deny rule=stolen":     1,
		"tpm.attestation.rule outcome=unavailable effect=deny rule=stolen": 1,
		"tpm.source source=factory verdict=listed":                         4,
		"tpm.source source=factory verdict=not_listed":                     1,
		"tpm.source source=stolen verdict=listed":                          1,
		"tpm.source source=stolen verdict=not_listed":                      3,
		"tpm.source source=stolen verdict=cannot_tell":                     1,
		"sample tpm.attestation.elapsed_time outcome=admitted":             1,
		"sample tpm.attestation.elapsed_time outcome=refused":              2,
		"sample tpm.attestation.elapsed_time outcome=malformed":            1,
		"sample tpm.attestation.elapsed_time outcome=challenge_failed":     1,
		"sample tpm.attestation.elapsed_time outcome=unavailable":          1,
	}
	for name, n := range want {
		fake.await(t, name, n)
	}
	fake.mu.Lock()
	defer fake.mu.Unlock()
	got := maps.Clone(fake.counts)
	delete(got, "tpm.heartbeat")
	delete(got, "tpm.configuration result=ok")
	maps.DeleteFunc(got, func(name string, n float32) bool {
		return n == 0 || strings.HasPrefix(name, "gauge ") // told before there is one, or at any time
	})
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
}

// A fleet that is turned away because a limit is reached looks like a source that cannot tell:
// the reason says which limit. How much of each limit is in use is known before it is reached.
func TestMetricsOfLimits(t *testing.T) {
	fake := newFakeMetrics()
	p := serve(t, fake.server())
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p.configure(t, oneHashDir(hashDir(t, tpm)))
	p.SetUnderWay(server.MaxUnderWay)
	if _, err := p.attestTPM(t, tpm); status.Code(err) != codes.Unavailable {
		t.Errorf("while too many are under way, a machine is told %v", err)
	}
	fake.await(t, "tpm.attestation.reason outcome=unavailable reason=too_many_under_way", 1)
	p.configure(t, oneHashDir(hashDir(t, tpm))) // so that gauges are told soon
	fake.await(t, "gauge tpm.limit.used limit=under_way", 1)
	fake.await(t, "gauge tpm.memory", 1<<20)
	p.SetUnderWay(0)
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Error(err)
	}
}

// If a reload is refused, the old rules stay in use, and the one line in the log is easily
// missed: the counter lets an operator write an alert. The version tells which of many servers
// still has an old plugin.
func TestMetricsOfThePlugin(t *testing.T) {
	fake := newFakeMetrics()
	p := serve(t, fake.server())
	p.Version = "v1.2.3"
	p.configure(t, oneHashDir(hashDir(t)))
	fake.await(t, "tpm.configuration result=ok", 1)
	fake.await(t, "gauge tpm.version version=v1.2.3", 1)
	if err := p.tryConfigure(`source "hash_dir" "machines" { path = "nowhere" }`); err == nil {
		t.Fatal("a relative path is accepted")
	}
	fake.await(t, "tpm.configuration result=refused", 1)
}

// Before a rule decides, it is on trial, and nobody searches the log of a whole fleet: what the
// rule would have done is counted, and nothing else changes.
func TestMetricsOfTrials(t *testing.T) {
	fake := newFakeMetrics()
	p := serve(t, fake.server())
	good := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	old := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
	strict, stolen := hashDir(t, good), hashDir(t, old)
	list(t, stolen, "marker", "")
	p.configure(t, oneHashDir(hashDir(t, good, old))+fmt.Sprintf(`
		source "hash_dir" "strict" { path = %q }
		source "hash_dir" "stolen" { path = %q marker = "marker" }
		allow "fleet" { any = ["factory"] }
		allow "tight" { any = ["strict"] enforce = false }
		deny "stolen" { any = ["stolen"] enforce = false }`, strict, stolen))
	attest := func(tpm *attestortest.TPM) {
		t.Helper()
		if _, err := p.attestTPM(t, tpm); err != nil {
			t.Error(err)
		}
	}
	attest(good)
	attest(old)
	if err := os.Remove(filepath.Join(stolen, "marker")); err != nil {
		t.Fatal(err)
	}
	attest(good)
	for name, n := range map[string]float32{
		"tpm.attestation outcome=admitted":                                3,
		"tpm.attestation.trial effect=allow rule=tight result=holds":      2,
		"tpm.attestation.trial effect=allow rule=tight result=holds_not":  1,
		"tpm.attestation.trial effect=deny rule=stolen result=holds":      1,
		"tpm.attestation.trial effect=deny rule=stolen result=holds_not":  1,
		"tpm.attestation.trial effect=deny rule=stolen result=might_hold": 1,
		"tpm.attestation.rule outcome=admitted effect=allow rule=fleet":   3,
	} {
		fake.await(t, name, n)
	}
}
