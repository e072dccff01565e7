package examples_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
)

// A link that leads nowhere, a heading that was renamed and a file that was
// moved are found here and not by the reader.
func TestLinksLeadSomewhere(t *testing.T) {
	followed := 0
	for _, p := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(p.prose, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			followed++
			if err := follow(t, p, m[1]); err != "" {
				t.Errorf("%s: the link to %s: %s", p.file, m[1], err)
			}
		}
	}
	if followed < 60 {
		t.Errorf("followed only %d links: is the test looking in the right place?", followed)
	}
}

// Each folder of pages has one index, and a page that its index does not have is found by nobody who reads.
func TestIndexesAreWhole(t *testing.T) {
	for index, pattern := range map[string]string{
		"README.md":              "docs/*.md",
		"docs/sources/README.md": "docs/sources/*.md",

		"docs/tpm-attestor/README.md": "docs/tpm-attestor/*.md",
		"docs/design/README.md":       "docs/design/*.md",
		"examples/README.md":          "examples/*/README.md",
	} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) < 5 {
			t.Fatalf("%s: %d pages, %v", pattern, len(files), err)
		}
		linked := map[string]bool{index: true}
		for _, m := range link.FindAllStringSubmatch(pageOf(t, index).prose, -1) {
			file, _, _ := strings.Cut(m[1], "#")
			linked[path.Join(path.Dir(index), file)] = true
		}
		for _, file := range files {
			name, err := filepath.Rel(root, file)
			if err != nil {
				t.Fatal(err)
			}
			if !linked[filepath.ToSlash(name)] {
				t.Errorf("%s: no link to %s", index, name)
			}
		}
	}
}

// follow returns what is wrong with a link.
func follow(t *testing.T, from page, target string) string {
	t.Helper()
	file, anchor, _ := strings.Cut(target, "#")
	if file == "" {
		file = from.file
	} else {
		file = path.Join(path.Dir(from.file), file)
	}
	if _, err := os.Stat(filepath.Join(root, file)); err != nil {
		return "there is no " + file
	}
	if anchor == "" {
		return ""
	}
	if !strings.HasSuffix(file, ".md") {
		return "an anchor in a file that is not Markdown"
	}
	if !anchors(pageOf(t, file))[anchor] {
		return "no heading in " + file + " has that anchor"
	}
	return ""
}

// anchors returns the anchors that GitHub gives to a page's headings.
func anchors(p page) map[string]bool {
	all := map[string]bool{}
	seen := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(p.prose, -1) {
		anchor := slug(m[1])
		seen[anchor]++
		if n := seen[anchor]; n > 1 {
			anchor += "-" + strconv.Itoa(n-1)
		}
		all[anchor] = true
	}
	return all
}

func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// repoPath is a code span that means a file or folder of the repository.
var repoPath = regexp.MustCompile(
	`^(?:attestor|sources|server|agent|docs|examples|e2e|\.ci)(?:/[A-Za-z0-9_.-]+)*/?$`)

// A package that was renamed does not live on in the documentation.
func TestFilesThatAreMentionedExist(t *testing.T) {
	mentioned := 0
	for _, p := range pages(t) {
		for _, span := range spans(p.prose) {
			if !repoPath.MatchString(span) || !strings.Contains(span, "/") {
				continue
			}
			mentioned++
			_, err := fs.Stat(os.DirFS(root), strings.TrimSuffix(span, "/"))
			if err != nil {
				t.Errorf("%s mentions %s: %v", p.file, span, err)
			}
		}
	}
	if mentioned < 5 {
		t.Errorf("found only %d: is the test looking in the right place?", mentioned)
	}
}

// A placeholder is no documentation.
func TestNothingIsLeftToWrite(t *testing.T) {
	open := regexp.MustCompile(`@@|\b(?:TODO|FIXME|XXX|TBD)\b`)
	for _, p := range pages(t) {
		for i, line := range strings.Split(read(t, p.file), "\n") {
			if m := open.FindString(line); m != "" {
				t.Errorf("%s:%d: %q", p.file, i+1, m)
			}
		}
	}
}
