package config

import (
	"strings"
	"testing"
)

// A name in an error comes from whoever wrote the configuration: long or strange
// ones must not break the line.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "": `""`, "a b": `"a b"`, "a\nb": `"a\nb"`,
		strings.Repeat("x", 100): strings.Repeat("x", 80) + "…",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %s, want %s", in, got, want)
		}
	}
	if got := new(problems).suggest(strings.Repeat("a", 1000), []string{"path"}); got != "; choose from path" {
		t.Errorf("suggest of a long word: %q", got)
	}
}
