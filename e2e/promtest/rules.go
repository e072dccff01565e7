package promtest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
)

// ReadRules reads a file of alert rules, as strictly as Prometheus.
func ReadRules(path string) ([]rulefmt.Rule, error) {
	groups, errs := rulefmt.ParseFile(path, false, model.UTF8Validation)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	var all []rulefmt.Rule
	for _, g := range groups.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

// An Alert is an alert that fires.
type Alert struct {
	Name   string
	Labels labels.Labels // of the query's result
	// Since is when it began to fire, and Until when it had ended; Until is zero if it had not.
	Since, Until time.Time
}

// Alerts returns the alerts that fire between two moments, if the rules are evaluated once in each
// interval.
func (s *Store) Alerts(
	ctx context.Context, rules []rulefmt.Rule, from, to time.Time, interval time.Duration,
) ([]Alert, error) {
	var all []Alert
	for _, r := range rules {
		found, err := s.Range(ctx, r.Expr, from, to, interval)
		if err != nil {
			return nil, fmt.Errorf("alert %s: %w", r.Alert, err)
		}
		for _, one := range found {
			for _, a := range firing(one.Floats, time.Duration(r.For), interval) {
				a.Name, a.Labels = r.Alert, one.Metric
				if !a.Until.Before(to) {
					a.Until = time.Time{}
				}
				all = append(all, a)
			}
		}
	}
	return all, nil
}

// firing returns the times when an alert fires: its query must have a result at each evaluation for the
// time wait.
func firing(points []promql.FPoint, wait, interval time.Duration) (all []Alert) {
	for i := 0; i < len(points); {
		end := i + 1
		for end < len(points) && points[end].T-points[end-1].T == interval.Milliseconds() {
			end++
		}
		since := time.UnixMilli(points[i].T).Add(wait)
		if last := time.UnixMilli(points[end-1].T); !last.Before(since) {
			all = append(all, Alert{Since: since, Until: last.Add(interval)})
		}
		i = end
	}
	return all
}
