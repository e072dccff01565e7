package examples_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

var (
	toolCommand = regexp.MustCompile(`(?:^|\s)tpm-attestor((?: +[^\s|;&()]+)+)`)
	toolFlag    = regexp.MustCompile(`^--[a-z][a-z0-9-]*`)
	commandName = regexp.MustCompile(`^[a-z]+$`) // no placeholder, and no message that the command prints
	subcommand  = regexp.MustCompile(`(?m)^  ([a-z]+) +\S`)
)

// So are the commands and the flags of the operators' tool: what a runbook says at night is what the tool
// understands, and each of its commands is in the overview.
func TestToolIsDocumented(t *testing.T) {
	buildTool(t)
	tool := toolHelp{t: t, texts: map[string]string{}}
	flags := 0
	for _, p := range pages(t) {
		if p.file == "CHANGELOG.md" || strings.HasPrefix(p.file, "docs/design/") {
			continue // what was decided or called so then
		}
		text := commandText(p) + strings.Join(toolSpans(p.prose), "\n")
		for _, m := range toolCommand.FindAllStringSubmatch(strings.ReplaceAll(text, "\\\n", " "), -1) {
			flags += tool.check(p.file, strings.Fields(m[1]))
		}
	}
	if flags < 50 {
		t.Errorf("found only %d flags: is the test looking in the right place?", flags)
	}
	overview := strings.Join(spans(pageOf(t, "docs/tpm-attestor/README.md").prose), "\n")
	for _, name := range tool.subcommands("") {
		if name != "help" && !regexp.MustCompile(`(?m)^(?:tpm-attestor )?`+name+`\b`).MatchString(overview) {
			t.Errorf("the overview of the tool has no command %q", name)
		}
	}
}

func toolSpans(prose string) (all []string) {
	for _, span := range spans(prose) {
		if strings.HasPrefix(span, "tpm-attestor ") {
			all = append(all, span)
		}
	}
	return all
}

// toolHelp has what the tool's commands say with --help.
type toolHelp struct {
	t     *testing.T
	texts map[string]string
}

func (h toolHelp) of(command string) string {
	h.t.Helper()
	if text, ok := h.texts[command]; ok {
		return text
	}
	out, err := exec.CommandContext(h.t.Context(), "tpm-attestor", append(strings.Fields(command), "--help")...).Output()
	if err != nil {
		h.t.Fatalf("tpm-attestor %s --help: %v", command, err)
	}
	h.texts[command] = string(out)
	return string(out)
}

func (h toolHelp) subcommands(command string) (names []string) {
	h.t.Helper()
	_, list, _ := strings.Cut(h.of(command), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\nFlags:")
	for _, m := range subcommand.FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	return names
}

// check compares one use of the tool with its help, and returns how many flags it has.
func (h toolHelp) check(file string, words []string) (flags int) {
	h.t.Helper()
	command := ""
	for len(words) > 0 && slices.Contains(h.subcommands(command), words[0]) {
		command, words = strings.TrimSpace(command+" "+words[0]), words[1:]
	}
	if names := h.subcommands(command); len(names) > 0 && len(words) > 0 && commandName.MatchString(words[0]) {
		h.t.Errorf("%s: tpm-attestor %s has no command %q, but %q", file, command, words[0], names)
	}
	for _, word := range words {
		flag := toolFlag.FindString(word)
		if flag == "" {
			continue
		}
		flags++
		if !regexp.MustCompile(regexp.QuoteMeta(flag) + `\b[^-]`).MatchString(h.of(command)) {
			h.t.Errorf("%s: tpm-attestor %s has no flag %s", file, command, flag)
		}
	}
	return flags
}
