package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func generate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := run([]string{dir}, "1700000000"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func page(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Markup of a page's own language, such as <hash>, must not swallow what a text says.
func TestPagesSayEverything(t *testing.T) {
	t.Parallel()
	dir := generate(t)
	markup := regexp.MustCompile(`\\\(..|\\f[A-Z]|[^a-zA-Z0-9<>*#|]`)
	plain := func(text string) string { return markup.ReplaceAllString(text, "") }
	for _, cmd := range all(newRoot()) {
		texts := []string{cmd.Short, cmd.Long, cmd.Example}
		cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) { texts = append(texts, f.Name, f.Usage) })
		for _, path := range []string{
			filepath.Join(dir, "man", strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"),
			filepath.Join(dir, "markdown", strings.ReplaceAll(cmd.CommandPath(), " ", "_")+".md"),
		} {
			said := plain(page(t, path))
			for _, text := range texts {
				for word := range strings.FieldsSeq(text) {
					if !strings.Contains(said, plain(word)) {
						t.Errorf("%s lacks %q", filepath.Base(path), word)
					}
				}
			}
		}
	}
}

// Two builds of a package from the same source are the same.
func TestPagesAreReproducible(t *testing.T) {
	t.Parallel()
	one, two := generate(t), generate(t)
	for _, pattern := range []string{"man/*.1", "markdown/*.md", "completions/*"} {
		files, err := filepath.Glob(filepath.Join(one, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, file := range files {
			name, err := filepath.Rel(one, file)
			if err != nil {
				t.Fatal(err)
			}
			if page(t, file) != page(t, filepath.Join(two, name)) {
				t.Errorf("%s differs", name)
			}
		}
	}
	if text := page(t, filepath.Join(one, "man", "tpm-attestor.1")); !strings.Contains(text, `"Nov 2023"`) {
		t.Errorf("the page's date is not that of SOURCE_DATE_EPOCH:\n%.200s", text)
	}
}

// A shell that cannot read the file that completes a command says so at each login.
func TestShellsReadCompletions(t *testing.T) {
	t.Parallel()
	dir := generate(t)
	for shell, file := range map[string]string{"bash": "tpm-attestor", "zsh": "_tpm-attestor", "fish": "tpm-attestor.fish"} {
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("no %s here", shell)
			continue
		}
		out, err := exec.CommandContext(t.Context(), shell, "-n", filepath.Join(dir, "completions", file)).CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) > 0 {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
}

// What cannot be written is said, and a package without pages is not built.
func TestErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		epoch string
	}{{nil, ""}, {[]string{"a", "b"}, ""}, {[]string{file}, ""}, {[]string{t.TempDir()}, "tomorrow"}} {
		if err := run(c.args, c.epoch); err == nil {
			t.Errorf("%q, %q: no error", c.args, c.epoch)
		}
	}
}
