package server

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// board is a SPIRE that shows the metrics that it was last told.
type board struct {
	metricsv1.MetricsClient
	mu     sync.Mutex
	values map[string]float32
}

func (b *board) put(key []string, labels []*metricsv1.Label, put func(name string)) {
	parts := []string{strings.Join(key, ".")}
	for _, l := range labels {
		parts = append(parts, l.GetName()+"="+l.GetValue())
	}
	name := strings.Join(parts, " ")
	b.mu.Lock()
	defer b.mu.Unlock()
	put(name)
}

func (b *board) SetGauge(
	_ context.Context, r *metricsv1.SetGaugeRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	b.put(r.GetKey(), r.GetLabels(), func(name string) { b.values[name] = r.GetVal() })
	return &emptypb.Empty{}, nil
}

func (b *board) IncrCounter(
	_ context.Context, r *metricsv1.IncrCounterRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	b.put(r.GetKey(), r.GetLabels(), func(name string) { b.values[name] += r.GetVal() })
	return &emptypb.Empty{}, nil
}

// take returns what was told since the last take.
func (b *board) take() map[string]float32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	values := b.values
	b.values = map[string]float32{}
	return values
}

// watched is a watch of sources whose status the test decides.
type watched struct {
	*watch
	log bytes.Buffer

	mu    sync.Mutex
	all   []admission.SourceStatus
	rules policy.Policy
}

func startWatched(client metricsv1.MetricsClient) *watched {
	w := &watched{watch: newWatch()}
	w.watch.log = hclog.New(&hclog.LoggerOptions{Output: &w.log, DisableTime: true})
	w.metrics = startMetrics(&metricsv1.MetricsServiceClient{MetricsClient: client})
	w.status = func() []admission.SourceStatus {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Clone(w.all)
	}
	w.policy = func() policy.Policy {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.rules
	}
	w.start()
	return w
}

// close stops the watch and the metrics that it adds to.
func (w *watched) close() {
	w.watch.close()
	w.metrics.close()
}

// become changes the status of the sources, and returns when SPIRE knows it.
func (w *watched) become(all ...admission.SourceStatus) {
	w.mu.Lock()
	w.all = all
	w.mu.Unlock()
	w.changed()
	time.Sleep(settleTime + metricsInterval)
	synctest.Wait()
}

// lines returns what has been logged since the last call.
func (w *watched) lines() string {
	defer w.log.Reset()
	return strings.TrimSpace(w.log.String())
}

func (w *watched) wantLog(t *testing.T, want ...string) {
	t.Helper()
	got := w.lines()
	if len(want) == 0 && got != "" || got != "" && len(strings.Split(got, "\n")) != len(want) {
		t.Errorf("the log has\n%s\nwant %q", got, want)
	}
	for _, part := range want {
		if !strings.Contains(got, part) {
			t.Errorf("the log has\n%s\nwant %q", got, part)
		}
	}
}

// wantValues compares what was told since the last call, without the counters of attestations.
func wantValues(t *testing.T, b *board, want map[string]float32) {
	t.Helper()
	got := b.take()
	maps.DeleteFunc(got, func(name string, _ float32) bool {
		return strings.HasPrefix(name, "tpm.attestation") || strings.Contains(name, "verdict=")
	})
	same := func(a, b float32) bool { return a == b || math.IsNaN(float64(a)) && math.IsNaN(float64(b)) }
	if !maps.EqualFunc(got, want, same) {
		t.Errorf("metrics %v\nwant %v", got, want)
	}
}

// An operator sees what each server serves: in the log when it changes, and in metrics that
// neither go stale nor vanish, since an alert on a stale list depends on them.
func TestStatusIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{values: map[string]float32{}}
		w := startWatched(b)
		defer w.close()
		begun := time.Now()
		list := admission.SourceStatus{
			Name: "list", Kind: "http", Started: begun, Loads: true, Next: begun.Add(time.Minute), Refreshed: 1,
			Status: sources.Status{
				Loaded: begun, Confirmed: begun, Entries: 3, Serial: 1_700_000_042,
				Expires: begun.Add(11 * time.Second), Stale: begun.Add(time.Hour),
			},
		}
		w.become(list)
		w.wantLog(t, "[INFO]  Source status: source=list kind=http up=true loaded=2000-01-01T00:00:00Z "+
			"entries=3 serial=1700000042 confirmed=2000-01-01T00:00:00Z expires=2000-01-01T00:00:11Z next_attempt=2000-01-01T00:01:00Z")
		values := map[string]float32{
			"tpm.source.up source=list":                    1,
			"tpm.source.stuck source=list":                 0,
			"tpm.source.age source=list":                   1,
			"tpm.source.stale source=list":                 3599,
			"tpm.source.expires source=list":               10,
			"tpm.source.entries source=list":               3,
			"tpm.source.serial source=list":                1_700_000_042,
			"tpm.source.serial_low source=list":            42,
			"tpm.source.refresh source=list result=ok":     1,
			"tpm.source.refresh source=list result=failed": 0,
			"tpm.ek.alternating":                           0,
			"tpm.configuration result=ok":                  0,
			"tpm.configuration result=refused":             0,
			"tpm.heartbeat":                                1,
		}
		wantValues(t, b, values)

		time.Sleep(statusInterval)
		w.wantLog(t)
		for _, once := range []string{"ek.alternating", "configuration result=ok", "configuration result=refused"} {
			delete(values, "tpm."+once)
		}
		values["tpm.source.age source=list"] = 20
		values["tpm.source.stale source=list"] = 3580
		values["tpm.source.expires source=list"] = -9 // a list that nobody signs anew
		values["tpm.source.refresh source=list result=ok"] = 0
		wantValues(t, b, values)

		list.Failed, list.Err, list.Stuck = 2, errors.New("502 Bad\nGateway"), 4
		w.metrics.add(ofAlternating(), 2)
		w.become(list)
		w.wantLog(t, "[WARN]  Source status: source=list kind=http up=false loaded=2000-01-01T00:00:00Z "+
			"entries=3 serial=1700000042 confirmed=2000-01-01T00:00:00Z expires=2000-01-01T00:00:11Z next_attempt=2000-01-01T00:01:00Z "+
			"error=\"502 Bad\uFFFDGateway\" stuck=4")
		got := b.take()
		if got["tpm.source.up source=list"] != 0 || got["tpm.source.stuck source=list"] != 4 ||
			got["tpm.source.refresh source=list result=failed"] != 2 || got["tpm.ek.alternating"] != 2 {
			t.Errorf("metrics %v", got)
		}
	})
}

// If a new configuration replaces a source, the new source counts from zero. SPIRE forgets no
// gauge: a gauge that a source does not have any more, and every gauge of a source that is
// gone, becomes NaN once, since an alert on it would otherwise stay on until spire-server
// restarts.
func TestStatusOfAnotherSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{values: map[string]float32{}}
		w := startWatched(b)
		defer w.close()
		nan := float32(math.NaN())
		dir := admission.SourceStatus{Name: "dir", Kind: "hash_dir", Started: time.Now()}
		ca := admission.SourceStatus{Name: "ca", Kind: "ek_ca", Started: time.Now(), Loads: true, Refreshed: 5}
		ca.Loaded, ca.Confirmed, ca.Serial = time.Now(), time.Now(), 42
		w.become(ca, dir)
		w.wantLog(t, "source=ca kind=ek_ca up=true loaded=", "source=dir kind=hash_dir up=true")
		b.take()
		ca.Started, ca.Refreshed, ca.Failed = time.Now(), 0, 1
		ca.Loaded, ca.Confirmed, ca.Serial = time.Time{}, time.Time{}, 0
		w.become(ca)
		w.wantLog(t, "source=ca kind=ek_ca up=false")
		values := map[string]float32{
			"tpm.source.up source=ca": 0, "tpm.source.stuck source=ca": 0,
			"tpm.source.entries source=ca": nan, "tpm.source.age source=ca": nan,
			"tpm.source.serial source=ca": nan, "tpm.source.serial_low source=ca": nan,
			"tpm.source.up source=dir": nan, "tpm.source.stuck source=dir": nan,
			"tpm.source.refresh source=ca result=ok":     0,
			"tpm.source.refresh source=ca result=failed": 1,
			"tpm.heartbeat": 1,
		}
		wantValues(t, b, values)
		time.Sleep(statusInterval)
		values["tpm.source.refresh source=ca result=failed"] = 0
		maps.DeleteFunc(values, func(_ string, v float32) bool { return math.IsNaN(float64(v)) })
		wantValues(t, b, values)
	})
}

// Whether a vendor's server answers shows in how fetches end, for each source, even if machines
// that need no fetch attest in between.
func TestFetchesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{values: map[string]float32{}}
		w := startWatched(b)
		defer w.close()
		s := admission.SourceStatus{Name: "ca", Started: time.Now(), Fetches: true, Fetched: 1}
		want := func(ok, failed float32) {
			t.Helper()
			values := b.take()
			for name, n := range map[string]float32{
				"tpm.source.up source=ca": 1, "tpm.source.fetch source=ca result=ok": ok,
				"tpm.source.fetch source=ca result=failed": failed,
			} {
				if got, told := values[name]; got != n || !told {
					t.Errorf("%s is %v, want %v", name, got, n)
				}
			}
		}
		w.become(s)
		want(1, 0)
		s.Fetched, s.FetchesFailed = 3, 4
		w.become(s)
		want(2, 4)
		s.Started = s.Started.Add(time.Second)
		w.become(s)
		want(3, 4)
	})
}

// An alert sees growth, so it sees a first event only if there was a zero before: the first
// machine that is denied would go unnoticed.
func TestCountersAreToldBeforeTheirFirstEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{values: map[string]float32{}}
		w := startWatched(b)
		defer w.close()
		w.rules = policy.Policy{
			Allow: []policy.Rule{{Name: "fleet"}, {Name: "tight", Trial: true}},
			Deny:  []policy.Rule{{Name: "stolen"}},
		}
		w.become(admission.SourceStatus{Name: "dir"})
		values := b.take()
		for _, name := range []string{
			"tpm.attestation outcome=unavailable", "tpm.attestation outcome=internal",
			"tpm.attestation.rule outcome=admitted effect=allow rule=fleet",
			"tpm.attestation.rule outcome=refused effect=deny rule=stolen",
			"tpm.attestation.trial effect=allow rule=tight result=holds",
			"tpm.attestation.trial effect=allow rule=tight result=holds_not",
			"tpm.attestation.trial effect=allow rule=tight result=might_hold",
			"tpm.source source=dir verdict=cannot_tell",
		} {
			if n, ok := values[name]; n != 0 || !ok {
				t.Errorf("%s: %v, told: %v", name, n, ok)
			}
		}
		told := func() (rules int) {
			for name := range b.take() {
				if strings.HasPrefix(name, "tpm.attestation") {
					rules++
				}
			}
			return rules
		}
		time.Sleep(statusInterval)
		if n := told(); n != 0 {
			t.Errorf("%d are told again", n)
		}
		w.mu.Lock()
		w.rules.Deny = append(w.rules.Deny, policy.Rule{Name: "sold"})
		w.mu.Unlock()
		w.become(admission.SourceStatus{Name: "dir"})
		if n := told(); n != 1 {
			t.Errorf("%d are told of a rule that is new", n)
		}
	})
}

// Changes that come in a burst are told once, and a shutdown waits neither for
// them nor for a SPIRE that takes no metrics.
func TestStatusNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &board{values: map[string]float32{}}
		w := startWatched(b)
		for range 1000 {
			w.changed()
		}
		time.Sleep(settleTime + metricsInterval)
		synctest.Wait()
		if n := b.values["tpm.heartbeat"]; n != 1 {
			t.Errorf("told %v times", n)
		}
		w.changed()
		synctest.Wait()
		begun := time.Now()
		w.close()

		hung := startWatched(hungBoard{})
		hung.become(admission.SourceStatus{Name: "x"})
		hung.changed()
		hung.close()
		if took := time.Since(begun); took > settleTime+metricsInterval+flushTimeout {
			t.Errorf("took %v", took)
		}
		newWatch().close() // one that never began
	})
}

// hungBoard is a SPIRE that takes no metrics.
type hungBoard struct{ metricsv1.MetricsClient }

func (hungBoard) SetGauge(
	ctx context.Context, _ *metricsv1.SetGaugeRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hungBoard) IncrCounter(
	ctx context.Context, _ *metricsv1.IncrCounterRequest, _ ...grpc.CallOption,
) (*emptypb.Empty, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
