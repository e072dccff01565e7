package examples_test

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the repository's root, seen from this package.
const root = ".."

// repoFiles returns the paths, relative to root, of the repository's files with
// one of the suffixes. Hidden folders and what builds and demos leave are not
// the repository's.
func repoFiles(t *testing.T, suffixes ...string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			hidden := strings.HasPrefix(d.Name(), ".") && rel != "." && rel != ".ci"
			if hidden || rel == "bin" || rel == "demo" || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(rel, s) }) {
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// read returns the content of one of the repository's files.
func read(t *testing.T, rel string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, rel))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// source returns the Go source of the folders, tests left out.
func source(t *testing.T, folders ...string) string {
	t.Helper()
	var b strings.Builder
	for _, file := range repoFiles(t, ".go") {
		isTest := strings.HasSuffix(file, "_test.go")
		if !isTest && slices.ContainsFunc(folders, func(f string) bool { return strings.HasPrefix(file, f+"/") }) {
			b.WriteString(read(t, file))
		}
	}
	if b.Len() == 0 {
		t.Fatalf("no Go source in %q", folders)
	}
	return b.String()
}

// block is one fenced block of a Markdown file.
type block struct {
	file string
	line int      // of the fence
	info []string // what stands behind the fence, "hcl", "server", "invalid"
	text string
}

func (b block) lang() string {
	if len(b.info) == 0 {
		return ""
	}
	return b.info[0]
}

func (b block) has(word string) bool { return slices.Contains(b.info, word) }

// page is a Markdown file, taken apart.
type page struct {
	file   string
	prose  string // without its blocks, line for line
	blocks []block
}

var fence = regexp.MustCompile("^\\s*```(.*)$")

// pages returns all Markdown files of the repository.
func pages(t *testing.T) []page {
	t.Helper()
	var all []page
	for _, file := range repoFiles(t, ".md") {
		all = append(all, takeApart(t, file, []byte(read(t, file))))
	}
	if len(all) < 10 {
		t.Fatalf("found only %d Markdown files: is the test looking in the right place?", len(all))
	}
	return all
}

func takeApart(t *testing.T, file string, content []byte) page {
	t.Helper()
	p := page{file: file}
	var prose strings.Builder
	var open *block
	lines := bufio.NewScanner(bytes.NewReader(content))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		match := fence.FindStringSubmatch(line)
		switch {
		case match != nil && open == nil:
			open = &block{file: file, line: n, info: strings.Fields(match[1])}
		case match != nil:
			p.blocks = append(p.blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
			line = ""
		}
		if match != nil {
			line = ""
		}
		prose.WriteString(line + "\n")
	}
	if err := lines.Err(); err != nil || open != nil {
		t.Fatalf("%s: a block is not closed, or %v", file, err)
	}
	p.prose = prose.String()
	return p
}

// documented returns the rows of the only table in docs that has a mark: what is said in
// two places is soon said in two ways.
func documented(t *testing.T, mark string) [][]string {
	t.Helper()
	var found []page
	for _, p := range pages(t) {
		if strings.HasPrefix(p.file, "docs/") && strings.Contains(p.prose, "<!-- "+mark+" -->") {
			found = append(found, p)
		}
	}
	if len(found) != 1 || strings.Count(found[0].prose, "<!-- "+mark+" -->") != 1 {
		t.Fatalf("%d pages in docs have a table that is marked %q, or a page has two; want one", len(found), mark)
	}
	return marked(t, found[0], mark)
}

// marked returns the first table behind a comment such as <!-- keys: agent -->,
// a slice of cells a row, without its head.
func marked(t *testing.T, p page, mark string) [][]string {
	t.Helper()
	_, rest, found := strings.Cut(p.prose, "<!-- "+mark+" -->")
	if !found {
		t.Fatalf("%s: no table is marked %q", p.file, mark)
	}
	var rows [][]string
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if len(rows) > 0 {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("%s: the table marked %q is empty", p.file, mark)
	}
	return rows[2:]
}

// pageOf returns one Markdown file.
func pageOf(t *testing.T, file string) page {
	t.Helper()
	return takeApart(t, file, []byte(read(t, file)))
}

var codeSpan = regexp.MustCompile("`([^`\n]+)`")

// spans returns the code spans of a text.
func spans(text string) []string {
	var all []string
	for _, m := range codeSpan.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// A program that a build has left was committed once: 35 MB, which every clone then carries for ever.
func TestNothingBuiltIsCommitted(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z")
	cmd.Dir = root
	list, err := cmd.Output()
	if err != nil {
		t.Skip("no git checkout:", err)
	}
	const most = 1 << 20 // bytes; no source and no list of tests is nearly as long
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		info, err := os.Lstat(filepath.Join(root, name))
		if err == nil && info.Size() > most {
			t.Errorf("%s has %d bytes: is it built?", name, info.Size())
		}
	}
}
