package examples_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the pages say of `tpm-attestor list`, `validate`, `doctor`, `check` and `explain` can be pasted, and
// prints what the page shows: the commands of a page are run one after another, beside the
// files that it shows.
func TestListCommands(t *testing.T) {
	buildTool(t)
	runPages(t, 10, "lists.md", "validate.md", "doctor.md") // each uses files of the one before
	runPages(t, 5, "check.md")
}

// buildTool puts the command tpm-attestor onto the PATH.
func buildTool(t *testing.T) {
	t.Helper()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/tpm-attestor")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// runPages runs the commands of the tool's pages, of which there are at least some, in one folder.
func runPages(t *testing.T, least int, names ...string) {
	t.Helper()
	dir, commands := t.TempDir(), 0
	for _, name := range names {
		commands += runPage(t, dir, pageOf(t, "docs/tpm-attestor/"+name))
	}
	if commands < least {
		t.Errorf("found only %d commands in %q: is the test looking in the right place?", commands, names)
	}
}

// runPage runs the commands of a page in a folder, beside the files that the page shows, and
// returns how many there are.
func runPage(t *testing.T, dir string, p page) (commands int) {
	t.Helper()
	for _, b := range p.blocks {
		if b.lang() == "console" {
			commands += runConsole(t, dir, b)
		} else if shown := shownFile(b); shown != "" {
			must(t, os.WriteFile(filepath.Join(dir, shown), []byte(b.text), 0o600))
		}
	}
	return commands
}

// shownFile returns the name of the file that a block shows, or nothing.
func shownFile(b block) string {
	for _, name := range []string{"server.hcl", "server.conf", "decisions.json", "refusal.log"} {
		if b.has(name) {
			return name
		}
	}
	switch {
	case b.lang() == "csv":
		return "delivery.csv"
	case b.has("list"):
		return "machines.txt"
	}
	return ""
}

// progress is what a command says if it takes longer than a second, as on a busy machine.
var progress = regexp.MustCompile(`(?m)^.+ \(\d+s\)\n`)

// runConsole runs the commands of a block, and fails the test if they print anything else than
// the block shows, where … stands for anything in a line. It returns how many there are.
func runConsole(t *testing.T, dir string, b block) int {
	t.Helper()
	all := regexp.MustCompile(`(?m)^\$ `).Split(b.text, -1)[1:]
	for _, text := range all {
		command, want, _ := strings.Cut(text, "\n")
		cmd := exec.CommandContext(t.Context(), "sh", "-c", command+" 2>&1")
		cmd.Dir = dir
		out, err := cmd.Output()                                       // several commands fail, as they should
		if _, failed := err.(*exec.ExitError); err != nil && !failed { //nolint:errorlint // bare
			t.Fatal(err)
		}
		out = progress.ReplaceAll(out, nil)
		pattern := strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".+")
		if !regexp.MustCompile(`^` + pattern + `$`).Match(out) {
			t.Errorf("%s: %s prints\n%s\nthe page says\n%s", b.file, command, out, want)
		}
	}
	return len(all)
}
