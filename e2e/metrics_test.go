package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// An alert on a metric or a label that does not exist never fires. So every metric in
// docs/monitoring.md is there in what a real SPIRE shows to Prometheus, with that name and type,
// before anything has happened. The metrics of a removed source do not stay.
func TestMetricsOfTheAlerts(t *testing.T) {
	w := newWorld(t)
	list, stolen := filepath.Join(w.dir, "list.json"), w.folder("stolen")
	ca, denied := swtpmtest.NewCA(t), stranger(t, 0)
	w.machine(ca) // writes the CA's certificate
	w.write(list, strings.Replace(w.jsonList(1_700_000_042, entry{Hash: denied.EKHash()}),
		"{", `{"expires": "2999-01-01T00:00:00Z", `, 1))
	w.write(filepath.Join(stolen, ".mounted"), "")
	w.write(filepath.Join(stolen, denied.EKHash()), "")
	inventory := fmt.Sprintf("source \"hash_file\" \"inventory\" { path = %q }\n", list)
	others := fmt.Sprintf(`source "ek_ca" "vendors" { ca_path = %q }
		source "hash_dir" "stolen" { path = %q marker = ".mounted" }
		allow "production" { any = ["inventory"] }
		allow "strict" { all = ["inventory", "vendors"] enforce = false }
		deny "stolen" { any = ["stolen"] }`, ca.IssuerPath, stolen)
	s := w.server(spiretest.ServerConfig{PluginData: inventory + others, DataFile: true, Metrics: true})

	monitoring, err := os.ReadFile("../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	used := usedMetrics(string(monitoring))
	if len(used) < 15 {
		t.Errorf("found only %d metrics: is the test looking in the right place?", len(used))
	}
	w.soon(func() error {
		shown := w.scrape(s)
		var missing []error
		for _, m := range used {
			if !slices.ContainsFunc(shown, m.matches) {
				missing = append(missing, fmt.Errorf("%v is not there", m))
			}
		}
		return errors.Join(missing...)
	})

	const refusals = "spire_server_tpm_attestation_rule"
	labels := map[string]string{"effect": "deny", "outcome": "refused", "rule": "stolen"}
	w.wantMetric(s, metric{name: refusals, labels: labels, value: "0"})
	w.wantCode(s, denied, codes.PermissionDenied)
	w.wantMetric(s, metric{name: refusals, labels: labels, value: "1"})

	w.reconfigure(s, inventory, "Plugin reconfigured")
	for _, name := range []string{"up", "stuck", "entries"} {
		gone := map[string]string{"source": "vendors"}
		w.wantMetric(s, metric{name: "spire_server_tpm_source_" + name, labels: gone, value: "NaN"})
	}
	w.wantMetric(s, metric{
		name: "spire_server_tpm_source_serial_low", labels: map[string]string{"source": "inventory"}, value: "42",
	})
}

// A metric is a time series, or a pattern for one.
type metric struct {
	name, kind, value string // kind and value may be empty in a pattern
	labels            map[string]string
}

// matches reports whether a series matches the pattern m.
func (m metric) matches(shown metric) bool {
	for name, value := range m.labels {
		if v, ok := shown.labels[name]; !ok || value != "" && v != value {
			return false
		}
	}
	return shown.name == m.name && (m.kind == "" || shown.kind == m.kind) && (m.value == "" || shown.value == m.value)
}

var (
	selector   = regexp.MustCompile(`(increase\()?(spire_server_tpm_[a-z_]+)(?:\{([^}]*)\})?`)
	labelPair  = regexp.MustCompile(`(\w+)="([^"]*)"`)
	grouping   = regexp.MustCompile(`by \((\w+)\) \((spire_server_tpm_[a-z_]+)`)
	typeLine   = regexp.MustCompile(`^# TYPE (\S+) (\S+)$`)
	sampleLine = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
)

// usedMetrics returns the metrics in the queries of a text. A metric in increase() is a
// counter.
func usedMetrics(text string) []metric {
	var all []metric
	for _, m := range selector.FindAllStringSubmatch(text, -1) {
		used := metric{name: m[2], labels: labelsOf(m[3])}
		if m[1] != "" {
			used.kind = "counter"
		}
		all = append(all, used)
	}
	for _, m := range grouping.FindAllStringSubmatch(text, -1) {
		all = append(all, metric{name: m[2], labels: map[string]string{m[1]: ""}})
	}
	return all
}

func labelsOf(text string) map[string]string {
	labels := map[string]string{}
	for _, l := range labelPair.FindAllStringSubmatch(text, -1) {
		labels[l[1]] = l[2]
	}
	return labels
}

// scrape returns the plugin's metrics as the server shows them to Prometheus.
func (w *world) scrape(s *spiretest.Server) []metric {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, s.MetricsURL, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	var all []metric
	kinds := map[string]string{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if m := typeLine.FindStringSubmatch(line); m != nil {
			kinds[m[1]] = m[2]
		}
		m := sampleLine.FindStringSubmatch(line)
		if len(m) > 0 && strings.HasPrefix(m[1], "spire_server_tpm_") {
			all = append(all, metric{name: m[1], kind: kinds[m[1]], labels: labelsOf(m[2]), value: m[3]})
		}
	}
	return all
}

// wantMetric waits for a time series.
func (w *world) wantMetric(s *spiretest.Server, want metric) {
	w.t.Helper()
	w.soon(func() error {
		shown := w.scrape(s)
		if slices.ContainsFunc(shown, want.matches) {
			return nil
		}
		return fmt.Errorf("%v is not there, but %v", want, slices.DeleteFunc(shown, func(m metric) bool {
			return m.name != want.name
		}))
	})
}

// soon calls f until it returns nil, for a short time.
func (w *world) soon(f func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	if err := spiretest.Poll(ctx, f); err != nil {
		w.t.Fatal(err)
	}
}
