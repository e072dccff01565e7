package examples_test

import (
	"regexp"
	"strings"
	"testing"
)

var (
	interpolation = regexp.MustCompile(`\{\{`)
	tag           = regexp.MustCompile(`</?[A-Za-z]`)
)

// The pages can be published as a site, by VitePress for example. GitHub shows both as they are,
// but VitePress fails at a tag outside of code, and at braces that it takes for an interpolation, in
// the code of a line too.
func TestPagesAreFitForASite(t *testing.T) {
	for _, p := range pages(t) {
		if !strings.HasPrefix(p.file, "docs/") {
			continue
		}
		for i, line := range strings.Split(p.prose, "\n") {
			if interpolation.MatchString(line) || tag.MatchString(codeSpan.ReplaceAllString(line, "")) {
				t.Errorf("%s:%d: an interpolation, or a tag outside of code: %s", p.file, i+1, line)
			}
		}
	}
}
