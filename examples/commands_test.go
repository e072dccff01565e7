package examples_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// commandText returns what a reader may copy into a shell: console blocks, and
// the code spans that begin with a command of ours.
func commandText(p page) string {
	var b strings.Builder
	for _, span := range spans(p.prose) {
		if makeCommand.MatchString(span) || strings.HasPrefix(span, "tpm-attestor-") {
			b.WriteString(span + "\n")
		}
	}
	for _, blk := range p.blocks {
		if lang := blk.lang(); lang == "console" || lang == "sh" || lang == "bash" {
			b.WriteString(blk.text)
		}
	}
	return b.String()
}

// makeCommand is a code span that runs make. An error may begin with that word, too.
var makeCommand = regexp.MustCompile(`^make [a-z0-9-]+(?: [A-Z]+=\S+)*$`)

var makeTarget = regexp.MustCompile(`(?m)(?:^|[\s&;$])make ([a-z][a-z0-9-]*)`)

// A target that was renamed does not live on in the documentation.
func TestMakeTargetsExist(t *testing.T) {
	makefile := read(t, "Makefile")
	found := map[string]bool{}
	for _, p := range pages(t) {
		for _, m := range makeTarget.FindAllStringSubmatch(commandText(p), -1) {
			found[m[1]] = true
			rule := regexp.MustCompile(`(?m)^(?:[a-z0-9 -]+ )?` + regexp.QuoteMeta(m[1]) + `(?: [a-z0-9 -]+)?:`)
			if !rule.MatchString(makefile) {
				t.Errorf("%s: the Makefile has no target %q", p.file, m[1])
			}
		}
	}
	if len(found) < 8 {
		t.Errorf("found only %d targets: is the test looking in the right place?", len(found))
	}
}

var ourCommand = regexp.MustCompile(`(tpm-attestor-(?:agent|server))((?: +-[a-zA-Z][\w-]*(?:[= ][^\s-]\S*)?)+)`)

// A flag that the documentation tells people to use is one that the command has.
func TestFlagsExist(t *testing.T) {
	known := map[string]string{
		"tpm-attestor-agent":  help(t, "cmd/tpm-attestor-agent"),
		"tpm-attestor-server": help(t, "cmd/tpm-attestor-server"),
	}
	used := 0
	for _, p := range pages(t) {
		for _, m := range ourCommand.FindAllStringSubmatch(commandText(p), -1) {
			for word := range strings.FieldsSeq(m[2]) {
				if !strings.HasPrefix(word, "-") {
					continue
				}
				used++
				name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
				if !regexp.MustCompile(`\s--?` + regexp.QuoteMeta(name) + `\s`).MatchString(known[m[1]]) {
					t.Errorf("%s: %s has no flag -%s; its help:\n%s", p.file, m[1], name, known[m[1]])
				}
			}
		}
	}
	if used < 3 {
		t.Errorf("found only %d flags: is the test looking in the right place?", used)
	}
}

// help builds a command and returns what it says with -help.
func help(t *testing.T, folder string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), filepath.Base(folder))
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./"+folder)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", folder, err, out)
	}
	// The flag package exits with 0 or 2 after its help.
	out, _ := exec.CommandContext(t.Context(), bin, "-help").CombinedOutput()
	return string(out)
}
