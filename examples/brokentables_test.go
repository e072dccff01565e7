package examples_test

import (
	"regexp"
	"strings"
	"testing"
)

var separator = regexp.MustCompile(`^\|( ?:?-+:? ?\|)+$`)

// A table that a blank line cuts in two shows its second half as text with bars.
func TestTablesAreWhole(t *testing.T) {
	tables := 0
	for _, p := range pages(t) {
		lines := strings.Split(p.prose, "\n")
		for i, line := range lines {
			if !strings.HasPrefix(line, "|") || i > 0 && strings.HasPrefix(lines[i-1], "|") {
				continue
			}
			tables++
			if i+1 == len(lines) || !separator.MatchString(lines[i+1]) {
				t.Errorf("%s:%d: a table begins without a head: is there a blank line above?", p.file, i+1)
			}
		}
	}
	if tables < 20 {
		t.Errorf("found only %d tables: is the test looking in the right place?", tables)
	}
}
