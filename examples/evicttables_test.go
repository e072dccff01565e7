package examples_test

import (
	"slices"
	"strings"
	"testing"
)

// Alerts about evictions are written from these tables, and programs read the events.
func TestEvictIsDocumented(t *testing.T) {
	const folder = "cmd/tpm-attestor/internal/evict/"
	report := read(t, folder+"report.go")
	for _, tt := range []struct{ mark, source, pattern string }{
		{"evict: metrics", read(t, folder+"status.go"), `= metric\{"([a-z_]+)"`},
		{"evict: alarms", report, `alarm[A-Z]\w+\s*= "([a-z_]+)"`},
		{"evict: events", report, `event[A-Z]\w+\s*= "([a-z_]+)"`},
		{"evict: flags", read(t, folder+"evict.go"), `flags\.\w+\(&o\.\w+, "([a-z-]+)"`},
	} {
		var said []string
		for _, row := range documented(t, tt.mark) {
			for _, span := range spans(row[0]) {
				name, _, _ := strings.Cut(strings.TrimPrefix(span, "--"), " ")
				said = append(said, name)
			}
		}
		slices.Sort(said)
		if known := literals(tt.source, tt.pattern); len(known) < 4 || !slices.Equal(said, known) {
			t.Errorf("%s: documented are %q, there are %q", tt.mark, said, known)
		}
	}
}
