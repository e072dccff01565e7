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
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/rulefmt"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/promtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// An alert on a metric or a label that does not exist never fires, and a panel on it stays empty. So a real
// SPIRE has to show Prometheus everything that the alert rules, the documentation and the dashboard ask for;
// what the alerts need, even before anything has happened. Prometheus' own engine evaluates the queries: each
// panel has a result, and so have the alerts for what has happened, and no others. The metrics of a removed
// source do not stay.
func TestMonitoring(t *testing.T) {
	w := newWorld(t)
	m := w.monitored()
	w.write(filepath.Join(m.stolen, m.denied.EKHash()), "")
	s := w.server(spiretest.ServerConfig{
		PluginData: m.inventory + m.others, DataFile: true, Metrics: true, MorePlugins: m.composer,
	})
	m.evicter = w.evicter(s)
	rules, err := promtest.ReadRules("../examples/monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	dashboard, err := promtest.ReadDashboard("../examples/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	first := w.calm(s, m, rules)

	w.wantCode(s, m.listed, codes.OK)
	w.wantCode(s, stranger(t, 9), codes.PermissionDenied)
	w.wantCode(s, m.denied, codes.PermissionDenied)
	w.wantMetric(s, metric{name: "spire_server_tpm_attestation", labels: map[string]string{"outcome": "refused"}, value: "2"})
	second := w.shown(s, m) // some panels show the growth of metrics that an attestation begins
	w.wantCode(s, m.listed, codes.OK)
	w.reconfigure(s, `nonsense = 1`, "unknown key")
	w.reconfigure(s, m.inventory+m.others+m.absent, "Plugin reconfigured")
	w.wantCode(s, stranger(t, 9), codes.Unavailable)
	w.soon(func() error {
		store := w.store(first, second, w.shown(s, m))
		return errors.Join(
			w.wantAlerts(store, rules, "TPMConfigurationRefused", "TPMDenied", "TPMSourceDown", "TPMUnavailable"),
			w.wantPanels(store, dashboard),
		)
	})

	w.reconfigure(s, m.inventory, "Plugin reconfigured")
	for _, name := range []string{"up", "stuck", "entries"} {
		gone := map[string]string{"source": "vendors"}
		w.wantMetric(s, metric{name: "spire_server_tpm_source_" + name, labels: gone, value: "NaN"})
	}
	w.wantMetric(s, metric{
		name: "spire_server_tpm_source_serial_low", labels: map[string]string{"source": "inventory"}, value: "42",
	})
	w.soon(func() error {
		return w.wantAlerts(w.store(first, second, w.shown(s, m)), rules, "TPMConfigurationRefused", "TPMDenied", "TPMUnavailable")
	})
}

// monitored is a configuration in parts, and machines for it.
type monitored struct {
	inventory, others, absent string
	stolen                    string // a folder
	composer                  string // a plugin
	listed, denied            *attestortest.TPM
	evicter                   *evicter
}

// shown is what Prometheus scrapes.
type shown struct{ server, node string }

// shown returns what the server shows to Prometheus, and the status of the evicter, which
// node_exporter shows.
func (w *world) shown(s *spiretest.Server, m *monitored) shown {
	w.t.Helper()
	status, err := os.ReadFile(m.evicter.status)
	if err != nil {
		w.t.Fatal(err)
	}
	return shown{w.page(s), string(status)}
}

func (w *world) monitored() *monitored {
	w.t.Helper()
	list, ca := filepath.Join(w.dir, "list.json"), swtpmtest.NewCA(w.t)
	m := &monitored{stolen: w.folder("stolen"), listed: stranger(w.t, 1), denied: stranger(w.t, 0)}
	w.machine(ca) // writes the CA's certificate
	w.write(list, strings.Replace(w.jsonList(1_700_000_042, entry{Hash: m.denied.EKHash()}, entry{Hash: m.listed.EKHash()}),
		"{", `{"expires": "2999-01-01T00:00:00Z", `, 1))
	w.write(filepath.Join(m.stolen, ".mounted"), "")
	socket := filepath.Join(w.folder("composer"), "svid.sock")
	m.composer = fmt.Sprintf("CredentialComposer \"tpm\" {\nplugin_cmd = %q\nplugin_data { socket = %q }\n}",
		w.programs.ServerPlugin, socket)
	m.inventory = fmt.Sprintf("svid_key = \"optional\"\nsvid_key_socket = %q\n", socket) +
		fmt.Sprintf("source \"hash_file\" \"inventory\" { path = %q }\n", list)
	m.others = fmt.Sprintf(`source "ek_ca" "vendors" { ca_path = %q }
		source "hash_dir" "stolen" { path = %q marker = ".mounted" }
		allow "production" { any = ["inventory"] }
		allow "strict" { all = ["inventory", "vendors"] enforce = false }
		deny "stolen" { any = ["stolen"] }`, ca.IssuerPath, m.stolen)
	m.absent = fmt.Sprintf(`
		source "hash_dir" "absent" { path = %q marker = ".mounted" }
		allow "more" { any = ["absent"] }`, w.folder("unmounted"))
	return m
}

// calm checks that the server shows everything that the alert rules and the documentation ask for before
// anything has happened, and that no alert's query has a result once the plugin is alive. It returns what
// the server has shown.
func (w *world) calm(s *spiretest.Server, m *monitored, rules []rulefmt.Rule) shown {
	w.t.Helper()
	queries := documentedQueries(w.t)
	for _, r := range rules {
		queries = append(queries, promtest.Query{Of: r.Alert, Expr: r.Expr})
	}
	var first shown
	w.soon(func() error {
		first = w.shown(s, m)
		store := w.store(first)
		var errs []error
		for _, q := range queries {
			errs = append(errs, store.Check(q))
		}
		return errors.Join(append(errs, w.wantAlerts(store, rules, "TPMPluginGone"))...) // one scrape shows no growth
	})
	return first
}

// documentedQueries returns the queries in the page about monitoring.
func documentedQueries(t *testing.T) (all []promtest.Query) {
	t.Helper()
	const page = "../docs/monitoring.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range documentedQuery.FindAllStringSubmatch(string(text), -1) {
		all = append(all, promtest.Query{Of: page, Expr: found[1] + found[2]})
	}
	if len(all) < 5 {
		t.Errorf("found only %d queries in %s: is the test looking in the right place?", len(all), page)
	}
	return all
}

// store returns what Prometheus has after a scrape a minute, the last of them at the time last.
func (w *world) store(scrapes ...shown) *promtest.Store {
	w.t.Helper()
	store := promtest.NewStore()
	for i, scrape := range scrapes {
		at := lastScrape.Add(time.Duration(i+1-len(scrapes)) * time.Minute)
		if err := errors.Join(
			store.Scrape(scrape.server, "spire-server", "server:9988", at),
			store.Scrape(scrape.node, "node", "server:9100", at),
		); err != nil {
			w.t.Fatal(err)
		}
	}
	return store
}

var lastScrape = time.Now()

// wantAlerts returns an error unless the queries of these alerts have a result, and no others.
func (w *world) wantAlerts(store *promtest.Store, rules []rulefmt.Rule, want ...string) error {
	var got []string
	for _, r := range rules {
		found, err := store.Eval(w.ctx, r.Expr, lastScrape)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			got = append(got, r.Alert)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("there is something to tell for the alerts %q, want %q", got, want)
	}
	return nil
}

// wantPanels returns an error if a query of the dashboard asks for something that is not there, or
// has no result.
func (w *world) wantPanels(store *promtest.Store, d *promtest.Dashboard) error {
	var errs []error
	for _, q := range d.Queries() {
		errs = append(errs, store.Check(q))
		switch found, err := store.Eval(w.ctx, q.Expr, lastScrape); {
		case err != nil:
			errs = append(errs, err)
		case len(found) == 0:
			errs = append(errs, fmt.Errorf("%s is empty: %s", q.Of, q.Expr))
		}
	}
	return errors.Join(errs...)
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
	documentedQuery = regexp.MustCompile("(?m)^((?:increase\\()?spire_server_tpm_.*)$|`(spire_server_tpm_[^`]*)`")
	labelPair       = regexp.MustCompile(`(\w+)="([^"]*)"`)
	typeLine        = regexp.MustCompile(`^# TYPE (\S+) (\S+)$`)
	sampleLine      = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
)

func labelsOf(text string) map[string]string {
	labels := map[string]string{}
	for _, l := range labelPair.FindAllStringSubmatch(text, -1) {
		labels[l[1]] = l[2]
	}
	return labels
}

// layMonitoring lists two machines, of which one is stolen, and has the metrics shown at a free port.
func (s *site) layMonitoring() {
	s.put("/srv/tpm/list.json", s.jsonList(1, entry{Hash: s.one.EKHash()}, entry{Hash: s.two.EKHash()}))
	s.put("/srv/tpm/stolen/.mounted", "")
	s.put("/srv/tpm/stolen/"+s.two.EKHash(), "")
	port, err := spiretest.FreePort()
	if err != nil {
		s.t.Fatal(err)
	}
	s.metricsPort = strconv.Itoa(port)
	s.replacements = append(s.replacements, "port = 9988", "port = "+s.metricsPort)
}

// The metrics are where the README says.
func (s *site) monitoring(server *spiretest.Server) {
	s.admits(server, s.one)
	s.refuses(server, s.two)
	server.MetricsURL = "http://127.0.0.1:" + s.metricsPort + "/metrics"
	s.wantMetric(server, metric{name: "spire_server_tpm_heartbeat", kind: "counter"})
	denied := map[string]string{"effect": "deny", "outcome": "refused", "rule": "stolen"}
	s.wantMetric(server, metric{name: "spire_server_tpm_attestation_rule", labels: denied, value: "1"})
}

// page returns what the server shows to Prometheus.
func (w *world) page(s *spiretest.Server) string {
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
	return string(body)
}

// scrape returns the plugin's metrics as the server shows them to Prometheus.
func (w *world) scrape(s *spiretest.Server) []metric {
	w.t.Helper()
	var all []metric
	kinds := map[string]string{}
	for line := range strings.Lines(w.page(s)) {
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
