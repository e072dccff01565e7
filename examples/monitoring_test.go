package examples_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	dashboardFile = "examples/monitoring/dashboard.json"
	alertsFile    = "examples/monitoring/alerts.yml"
)

// panel is a panel of the dashboard.
type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		RefID, Expr string
		Datasource  struct{ Type, UID string }
	}
}

func dashboardPanels(t *testing.T) []panel {
	t.Helper()
	var d struct {
		UID, Title string
		Panels     []panel
	}
	if err := json.Unmarshal([]byte(read(t, dashboardFile)), &d); err != nil {
		t.Fatalf("%s: %v", dashboardFile, err)
	}
	if d.UID == "" || d.Title == "" || len(d.Panels) < 20 {
		t.Errorf("%s: UID %q, title %q, %d panels", dashboardFile, d.UID, d.Title, len(d.Panels))
	}
	return d.Panels
}

// Grafana shows one of two panels with the same ID, and nothing of a panel that asks a data source
// which only its author has. Whoever looks at a figure at night is told what it is.
func TestDashboard(t *testing.T) {
	ids, titles := map[int]bool{}, map[string]bool{}
	bottom := 0
	for _, p := range dashboardPanels(t) {
		if ids[p.ID] || titles[p.Title] || p.ID == 0 || p.Title == "" {
			t.Errorf("the panel %q: its ID %d or its title is there twice, or missing", p.Title, p.ID)
		}
		ids[p.ID], titles[p.Title] = true, true
		if p.GridPos.Y < bottom && p.Type == "row" || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("the panel %q overlaps another, or the edge", p.Title)
		}
		bottom = max(bottom, p.GridPos.Y+p.GridPos.H)
		if p.Type == "row" {
			if !strings.HasSuffix(p.Title, "?") {
				t.Errorf("the row %q is no question", p.Title)
			}
			continue
		}
		if len(p.Description) < 20 || !strings.HasSuffix(p.Description, ".") || len(p.Targets) == 0 {
			t.Errorf("the panel %q has no description, or nothing to show", p.Title)
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if refs[q.RefID] || q.RefID == "" || q.Datasource.UID != "${datasource}" {
				t.Errorf("the panel %q: its query %q is there twice, or asks %q", p.Title, q.RefID, q.Datasource.UID)
			}
			refs[q.RefID] = true
		}
	}
}

// A name that the table of metrics does not have is of no release, or of none any more; the test
// with a real SPIRE finds out whether what the table has is true.
func TestWhatIsMonitoredIsDocumented(t *testing.T) {
	known := map[string]bool{}
	for _, row := range documented(t, "metrics") {
		name := "spire_server_" + strings.Join(spans(row[1]), "_")
		known[name] = true
		if row[0] == "Sample" {
			known[name+"_sum"], known[name+"_count"] = true, true
		}
	}
	for _, name := range literals(read(t, "cmd/tpm-attestor/internal/evict/status.go"), `metric\{"([a-z_]+)"`) {
		known["tpm_attestor_evict_"+name] = true
	}
	for _, file := range []string{dashboardFile, alertsFile, "docs/monitoring.md", "examples/monitoring/README.md"} {
		for _, name := range regexp.MustCompile(`\b(?:spire_server_tpm|tpm_attestor_evict)_\w+`).FindAllString(read(t, file), -1) {
			if !known[name] {
				t.Errorf("%s: no metric is called %s", file, name)
			}
		}
	}
}

// alert is a rule of the file of alerts.
type alert struct{ name, severity, summary, runbook string }

// rule is how each rule is written: one that is written otherwise would not be found by the tests.
var rule = regexp.MustCompile(`(?m)^      - alert: (\w+)(?: # .+)?
        expr: (?:.+|>-\n(?:          .+\n)*          .+)
(?:        for: \w+\n)?        labels: \{severity: (\w+)\}
        annotations:
          summary: "(.+)"
          runbook: "(.+)"
          runbook_url: (\S+)$`)

func alerts(t *testing.T) []alert {
	t.Helper()
	text := read(t, alertsFile)
	var all []alert
	for _, m := range rule.FindAllStringSubmatch(text, -1) {
		a := alert{m[1], m[2], m[3], strings.ReplaceAll(m[4], `\"`, `"`)}
		url := "https://github.com/spire-tpm/spire-tpm-attestor/blob/main/docs/monitoring.md#" + strings.ToLower(a.name)
		if m[5] != url {
			t.Errorf("the runbook_url of %s is %s, want %s", a.name, m[5], url)
		}
		all = append(all, a)
	}
	if n := strings.Count(text, "- alert:"); n != len(all) || n < 12 {
		t.Fatalf("%d of %d rules are written as they should be", len(all), n)
	}
	return all
}

// Whoever is woken by an alert reads what has happened, what to look at and what to do, and finds
// more behind its link. What it says is in the log is there, and so is the panel that it names.
func TestAlertsSayWhatToDo(t *testing.T) {
	var want, rows []string
	code := source(t, "server", "sources")
	titles := map[string]bool{}
	for _, p := range dashboardPanels(t) {
		titles[p.Title] = true
	}
	anchor := anchors(pageOf(t, "docs/monitoring.md"))
	for _, a := range alerts(t) {
		want = append(want, "[`"+a.name+"`](#"+strings.ToLower(a.name)+") "+a.severity)
		if a.severity != "page" && a.severity != "ticket" {
			t.Errorf("%s: the severity is %q", a.name, a.severity)
		}
		if !anchor[strings.ToLower(a.name)] {
			t.Errorf("%s has no section in docs/monitoring.md", a.name)
		}
		for _, text := range []string{a.summary, a.runbook} {
			if len(text) < 20 || !strings.HasSuffix(text, ".") {
				t.Errorf("%s: %q is no sentence", a.name, text)
			}
		}
		for _, span := range spans(a.runbook) {
			command := strings.HasPrefix(span, "tpm-attestor ")
			if !command && !strings.Contains(code, span) {
				t.Errorf("%s: nothing says %q", a.name, span)
			}
		}
		for _, m := range regexp.MustCompile(`panel "([^"]+)"`).FindAllStringSubmatch(a.runbook, -1) {
			if !titles[m[1]] {
				t.Errorf("%s: the dashboard has no panel %q", a.name, m[1])
			}
		}
	}
	for _, row := range documented(t, "alerts") {
		rows = append(rows, row[0]+" "+row[1])
	}
	if !slices.Equal(rows, want) {
		t.Errorf("documented are the alerts %q, there are %q", rows, want)
	}
}

// Rules that are pasted from a page go their own way as soon as the file is corrected, and no test
// fires them.
func TestAlertsAreInOneFile(t *testing.T) {
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if strings.Contains(b.text, "- alert: ") {
				t.Errorf("%s:%d: alert rules belong in %s, and the page links to it", b.file, b.line, alertsFile)
			}
		}
	}
}

// The rules ask for the job by the name that the example of a configuration gives it.
func TestPrometheusLoadsTheRules(t *testing.T) {
	config := read(t, "examples/monitoring/prometheus.yml")
	for _, part := range []string{"\n  - alerts.yml\n", "\n  - job_name: spire-server "} {
		if !strings.Contains(config, part) {
			t.Errorf("prometheus.yml does not have %q", part)
		}
	}
	for _, job := range regexp.MustCompile(`job="([^"]*)"`).FindAllStringSubmatch(read(t, alertsFile), -1) {
		if job[1] != "spire-server" {
			t.Errorf("a rule asks for the job %q", job[1])
		}
	}
}
