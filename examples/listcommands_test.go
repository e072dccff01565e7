package examples_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the page says of `tpm-attestor list`, `validate` and `doctor` can be pasted, and prints what the page
// shows: its commands are run one after another, beside the files that it shows.
func TestListCommands(t *testing.T) {
	const file = "docs/tpm-attestor.md"
	var blocks []block
	for _, name := range []string{"Lists", "Validate", "Doctor"} { // each uses files of the one before
		_, section, found := strings.Cut(read(t, file), "\n## "+name+"\n")
		section, _, ended := strings.Cut(section, "\n## ")
		if !found || !ended {
			t.Fatalf("the page has no section %s", name)
		}
		blocks = append(blocks, takeApart(t, file, []byte(section)).blocks...)
	}
	dir, bin := t.TempDir(), t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/tpm-attestor")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	commands := 0
	for _, b := range blocks {
		switch {
		case b.has("server.hcl"):
			must(t, os.WriteFile(filepath.Join(dir, "server.hcl"), []byte(b.text), 0o600))
		case b.lang() == "csv":
			must(t, os.WriteFile(filepath.Join(dir, "delivery.csv"), []byte(b.text), 0o600))
		case b.has("list"):
			must(t, os.WriteFile(filepath.Join(dir, "machines.txt"), []byte(b.text), 0o600))
		case b.lang() == "console":
			commands += runConsole(t, dir, b)
		}
	}
	if commands < 10 {
		t.Errorf("found only %d commands: is the test looking in the right place?", commands)
	}
}

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
		pattern := strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".+")
		if !regexp.MustCompile(`^` + pattern + `$`).Match(out) {
			t.Errorf("%s: %s prints\n%s\nthe page says\n%s", b.file, command, out, want)
		}
	}
	return len(all)
}
