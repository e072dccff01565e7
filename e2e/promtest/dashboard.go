package promtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// A Dashboard is the part of a Grafana dashboard that tests check.
type Dashboard struct {
	UID           string  `json:"uid"`
	Title         string  `json:"title"`
	SchemaVersion int     `json:"schemaVersion"`
	Panels        []Panel `json:"panels"`
	Templating    struct {
		List []Variable `json:"list"`
	} `json:"templating"`
}

// A Panel is a panel, or a row if Type is "row".
type Panel struct {
	ID          int                      `json:"id"`
	Type        string                   `json:"type"`
	Title       string                   `json:"title"`
	Description string                   `json:"description"`
	Datasource  Datasource               `json:"datasource"`
	GridPos     struct{ H, W, X, Y int } `json:"gridPos"`
	Targets     []Target                 `json:"targets"`
	Panels      []Panel                  `json:"panels"`
}

// A Target is a query of a panel.
type Target struct {
	RefID      string     `json:"refId"`
	Expr       string     `json:"expr"`
	Datasource Datasource `json:"datasource"`
}

// A Datasource says which data source a panel queries.
type Datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// A Variable is a value that the reader of a dashboard chooses.
type Variable struct {
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Query      json.RawMessage `json:"query"`
	Definition string          `json:"definition"`
}

// ReadDashboard reads a dashboard.
func ReadDashboard(path string) (*Dashboard, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the dashboard: %w", err)
	}
	d := &Dashboard{}
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("read the dashboard %s: %w", path, err)
	}
	if dec.More() {
		return nil, fmt.Errorf("read the dashboard %s: something follows it", path)
	}
	return d, nil
}

// A Query is a query of a panel or of a rule, with the name of the panel or rule.
type Query struct{ Of, Expr string }

// variables replaces the variables in queries, as Grafana does if the reader has chosen All.
var variables = strings.NewReplacer(
	"$__rate_interval", "4m", "$__range", "1h", "$__interval", "1m", "$instance", ".*", "$source", ".*",
)

// Queries returns the queries of all panels, with their variables replaced.
func (d *Dashboard) Queries() []Query {
	var all []Query
	for _, p := range d.Panels {
		for _, t := range p.Targets {
			all = append(all, Query{p.Title + ", " + t.RefID, variables.Replace(t.Expr)})
		}
	}
	return all
}

// Check checks that the store has what a query asks for: each metric, each value of a label that it
// selects, and each label by which it groups or joins. It also checks that rate and increase are used with
// counters only. Prometheus does not report a misspelt name: the query has no result, and an alert
// never fires.
func (s *Store) Check(q Query) error {
	expr, err := parser.ParseExpr(q.Expr)
	if err != nil {
		return fmt.Errorf("%s: %w", q.Of, err)
	}
	var errs []error
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		if v, ok := node.(*parser.VectorSelector); ok {
			for _, problem := range s.lacks(v, path) {
				errs = append(errs, fmt.Errorf("%s: %s", q.Of, problem))
			}
		}
		return nil
	})
	return errors.Join(errs...)
}

// lacks returns what the store lacks for a selector. path are the nodes above the selector.
func (s *Store) lacks(v *parser.VectorSelector, path []parser.Node) (all []string) {
	i := slices.IndexFunc(v.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == model.MetricNameLabel })
	if i < 0 || !s.Has(v.LabelMatchers[i:i+1]) {
		return []string{fmt.Sprintf("there is no metric %s", v)}
	}
	name := v.LabelMatchers[i : i+1]
	for _, m := range v.LabelMatchers {
		if !s.Has(name, m.Name) {
			all = append(all, fmt.Sprintf("%s has no label %s", v.Name, m.Name))
		}
	}
	if !s.Has(v.LabelMatchers) {
		all = append(all, fmt.Sprintf("there is no series %s", v))
	}
	for _, node := range path {
		for _, label := range groupings(node) {
			if !s.Has(name, label) {
				all = append(all, fmt.Sprintf("%s has no label %s to group by", v.Name, label))
			}
		}
		f, ok := node.(*parser.Call)
		if ok && slices.Contains([]string{"increase", "rate"}, f.Func.Name) && !s.counts(v.Name) {
			all = append(all, fmt.Sprintf("%s is no counter, so that its %s means nothing", v.Name, f.Func.Name))
		}
	}
	return all
}

// counts reports whether a metric is a counter, or the _count or _sum of a summary.
func (s *Store) counts(name string) bool {
	summary := strings.TrimSuffix(strings.TrimSuffix(name, "_count"), "_sum")
	return s.kinds[name] == model.MetricTypeCounter || summary != name && s.kinds[summary] == model.MetricTypeSummary
}

// groupings returns the labels by which a node groups or joins.
func groupings(node parser.Node) []string {
	switch n := node.(type) {
	case *parser.AggregateExpr:
		if !n.Without {
			return n.Grouping
		}
	case *parser.BinaryExpr:
		if n.VectorMatching != nil && n.VectorMatching.On {
			return n.VectorMatching.MatchingLabels
		}
	}
	return nil
}
