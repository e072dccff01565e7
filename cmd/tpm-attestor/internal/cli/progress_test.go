package cli

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A command that is done within a second says nothing of its progress; one that takes longer
// does, in lines for a file and in one line, gone in the end, for a terminal.
func TestProgress(t *testing.T) {
	for name, test := range map[string]struct {
		takes    time.Duration
		terminal bool
		want     string
	}{
		"short":             {takes: 900 * time.Millisecond},
		"short, terminal":   {takes: 900 * time.Millisecond, terminal: true},
		"file":              {takes: 12 * time.Second, want: "reading: 7 rows (1s)\nwriting: 7 rows (11s)\n"},
		"terminal":          {takes: 1300 * time.Millisecond, terminal: true, want: "\r\x1b[Kreading: 7 rows (1s)\r\x1b[Kreading: 7 rows (1s)\r\x1b[K"},
		"ended just before": {takes: time.Second - 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out strings.Builder
				p := startProgressOn(&out, test.terminal, "reading", "rows")
				p.Add(7)
				time.Sleep(min(test.takes, 5*time.Second))
				p.Now("writing")
				time.Sleep(max(test.takes-5*time.Second, 0))
				p.End()
				if out.String() != test.want {
					t.Errorf("%q, want %q", &out, test.want)
				}
			})
		})
	}
}
