package examples_test

import (
	"regexp"
	"strings"
	"testing"
)

// notForASite is what a site that is made of the Markdown takes for its own: an
// interpolation, or a tag of HTML that is none. GitHub shows both as they are.
var notForASite = regexp.MustCompile(`\{\{|</?[A-Za-z]`)

// The pages can be published as a site, by VitePress for example, which fails at what it
// takes for an interpolation or a component, and takes neither in code.
func TestPagesAreFitForASite(t *testing.T) {
	for _, p := range pages(t) {
		if !strings.HasPrefix(p.file, "docs/") {
			continue
		}
		for i, line := range strings.Split(codeSpan.ReplaceAllString(p.prose, ""), "\n") {
			if m := notForASite.FindString(line); m != "" {
				t.Errorf("%s:%d: %q outside of code", p.file, i+1, m)
			}
		}
	}
}
