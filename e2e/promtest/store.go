// Package promtest evaluates the queries of dashboards and alert rules with Prometheus' own engine. The
// data is scraped from a server or made up by a test. It is for tests.
package promtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// A Store holds time series in memory. It is not safe for concurrent use while it is filled.
type Store struct {
	series map[string]*series
	kinds  map[string]model.MetricType // of what was scraped, by name
	engine *promql.Engine
}

type series struct {
	labels  labels.Labels
	samples []chunks.Sample
}

// NewStore returns an empty store.
func NewStore() *Store {
	const most, slow = 50_000_000, time.Minute
	return &Store{
		series: map[string]*series{}, kinds: map[string]model.MetricType{},
		engine: promql.NewEngine(promql.EngineOpts{MaxSamples: most, Timeout: slow}),
	}
}

// Scrape adds metrics in Prometheus' text format, as Prometheus does: with the labels job and instance,
// and with the series up.
func (s *Store) Scrape(text, job, instance string, at time.Time) error {
	p := textparse.NewPromParser([]byte(text), labels.NewSymbolTable(), false)
	target := func(b *labels.Builder) labels.Labels {
		return b.Set("job", job).Set("instance", instance).Labels()
	}
	for {
		entry, err := p.Next()
		switch {
		case errors.Is(err, io.EOF):
			s.add(target(labels.NewBuilder(labels.FromStrings(model.MetricNameLabel, "up"))), at, 1)
			return nil
		case err != nil:
			return fmt.Errorf("read the metrics of %s: %w", instance, err)
		case entry == textparse.EntryType:
			name, kind := p.Type()
			s.kinds[string(name)] = kind
			continue
		case entry != textparse.EntrySeries:
			continue
		}
		_, _, value := p.Series()
		var l labels.Labels
		p.Labels(&l)
		s.add(target(labels.NewBuilder(l)), at, value)
	}
}

// Load adds series in the notation of promtool's unit tests, such as `up{job="a"} 1 0x5 _ 3+2x4`,
// with a sample each interval, the first at the Unix epoch. A series of the same name and labels is
// replaced.
func (s *Store) Load(lines string, interval time.Duration) error {
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		l, values, err := parser.ParseSeriesDesc(line)
		if err != nil {
			return fmt.Errorf("series %q: %w", line, err)
		}
		delete(s.series, l.String())
		for i, v := range values {
			if !v.Omitted {
				s.add(l, time.Unix(0, 0).Add(time.Duration(i)*interval), v.Value)
			}
		}
	}
	return nil
}

func (s *Store) add(l labels.Labels, at time.Time, value float64) {
	key := l.String()
	if s.series[key] == nil {
		s.series[key] = &series{labels: l}
	}
	s.series[key].samples = append(s.series[key].samples, sample{at.UnixMilli(), value})
}

// Has reports whether there is a series that all matchers match, and that has all the labels
// named.
func (s *Store) Has(matchers []*labels.Matcher, named ...string) bool {
	for _, one := range s.series {
		if matches(one.labels, matchers) && !slices.ContainsFunc(named, func(name string) bool {
			return !one.labels.Has(name)
		}) {
			return true
		}
	}
	return false
}

func matches(l labels.Labels, matchers []*labels.Matcher) bool {
	return !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(l.Get(m.Name)) })
}

// Eval evaluates a query at one moment.
func (s *Store) Eval(ctx context.Context, query string, at time.Time) (promql.Vector, error) {
	q, err := s.engine.NewInstantQuery(ctx, s, nil, query, at)
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", query, err)
	}
	defer q.Close()
	result := q.Exec(ctx)
	v, err := result.Vector()
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", query, err)
	}
	return slices.Clone(v), nil
}

// Range evaluates a query once in each interval.
func (s *Store) Range(
	ctx context.Context, query string, from, to time.Time, interval time.Duration,
) (promql.Matrix, error) {
	q, err := s.engine.NewRangeQuery(ctx, s, nil, query, from, to, interval)
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", query, err)
	}
	defer q.Close()
	result := q.Exec(ctx)
	m, err := result.Matrix()
	if err != nil {
		return nil, fmt.Errorf("query %s: %w", query, err)
	}
	var all promql.Matrix
	for _, one := range m { // q.Close frees the points
		all = append(all, promql.Series{Metric: one.Metric, Floats: slices.Clone(one.Floats)})
	}
	return all, nil
}

// Querier implements storage.Queryable.
func (s *Store) Querier(mint, maxt int64) (storage.Querier, error) {
	return querier{s, mint, maxt}, nil
}

type querier struct {
	*Store
	mint, maxt int64
}

// Select implements storage.Querier.
func (q querier) Select(
	_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher,
) storage.SeriesSet {
	set := &seriesSet{}
	for _, one := range q.series {
		if !matches(one.labels, matchers) {
			continue
		}
		in := slices.DeleteFunc(slices.Clone(one.samples), func(v chunks.Sample) bool {
			return v.T() < q.mint || v.T() > q.maxt
		})
		set.all = append(set.all, storage.NewListSeries(one.labels, in))
	}
	slices.SortFunc(set.all, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return set
}

func (querier) LabelValues(
	context.Context, string, *storage.LabelHints, ...*labels.Matcher,
) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (querier) LabelNames(
	context.Context, *storage.LabelHints, ...*labels.Matcher,
) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (querier) Close() error { return nil }

// seriesSet implements storage.SeriesSet.
type seriesSet struct {
	all  []storage.Series
	next int
}

func (s *seriesSet) Next() bool                      { s.next++; return s.next <= len(s.all) }
func (s *seriesSet) At() storage.Series              { return s.all[s.next-1] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// sample implements chunks.Sample.
type sample struct {
	at    int64
	value float64
}

func (s sample) T() int64                    { return s.at }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.value }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }
