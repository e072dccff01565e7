package examples_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// literals returns the string literals in Go source that match a pattern, whose
// first group it is that counts; sorted, without duplicates.
func literals(source, pattern string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(source, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Registration entries are written from this table: each selector in it is one
// that the server makes, and each that it makes is in it.
func TestSelectorsAreDocumented(t *testing.T) {
	var selectors []string
	for _, row := range documented(t, "selectors") {
		name := spans(row[0])[0]
		selectors = append(selectors, strings.TrimPrefix(name, "tpm:"))
		if example := spans(row[1])[0]; !strings.HasPrefix(example, name+":") {
			t.Errorf("the example %q is no %s", example, name)
		}
	}
	slices.Sort(selectors)
	made := literals(read(t, "sources/limits.go"), `Prefix\w+\s*= "([a-z_:]+):"`)
	if other := literals(read(t, "server/selectors.go"), `"([a-z_:]+):"`); len(other) != 1 || other[0] != "label" {
		t.Errorf("the prefixes %q are written out, so that their lengths are not counted", other)
	}
	if !slices.Equal(selectors, made) {
		t.Errorf("documented are %q, made are %q", selectors, made)
	}
}

// Alerts are written from these tables.
func TestMetricsAreDocumented(t *testing.T) {
	metrics := read(t, "server/metrics.go") + read(t, "server/composer/metrics.go")
	known := literals(metrics, `metric\w+\s*= "([a-z_]+)"`)
	var keys []string
	for _, row := range documented(t, "metrics") {
		keys = append(keys, spans(row[1])...)
		for _, label := range spans(row[2]) {
			if !strings.Contains(metrics, `"`+label+`"`) {
				t.Errorf("%s has no label %q", row[1], label)
			}
		}
	}
	slices.Sort(keys)
	if keys = slices.Compact(keys); !slices.Equal(keys, known) {
		t.Errorf("documented are %q, there are %q", keys, known)
	}
	var outcomes []string
	for _, row := range documented(t, "outcomes") {
		outcomes = append(outcomes, spans(row[0])[0])
	}
	slices.Sort(outcomes)
	known = literals(read(t, "server/failure.go"), `outcome\w+\s+outcome = "([a-z_]+)"`)
	if !slices.Equal(outcomes, known) {
		t.Errorf("documented are the outcomes %q, there are %q", outcomes, known)
	}
	var reasons []string
	for _, row := range documented(t, "reasons") {
		reasons = append(reasons, spans(row[0])...)
	}
	slices.Sort(reasons)
	known = literals(read(t, "server/failure.go"), `reason\w+\s+reason = "([a-z_]+)"`)
	if !slices.Equal(reasons, known) {
		t.Errorf("documented are the reasons %q, there are %q", reasons, known)
	}
}

// tableMark stands above a table of messages. Those of what the server logs, and of SPIRE, say so.
var tableMark = regexp.MustCompile(`<!-- (messages(?:: [a-zA-Z]+)?) -->`)

// A person searches the documentation for what a log says: each message in its
// tables is one that the code has, word for word.
func TestMessagesAreTheCodes(t *testing.T) {
	code := texts(t)
	found := 0
	for _, p := range pages(t) {
		for _, message := range messagesIn(t, p, "messages", "messages: logged") {
			found++
			for part := range strings.SplitSeq(message, "…") {
				if !strings.Contains(code, strings.TrimSpace(part)) {
					t.Errorf("%s: nothing says %q", p.file, part)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("found only %d messages: is the test looking in the right place?", found)
	}
}

// texts returns the source of all programs, with long literals put together.
func texts(t *testing.T) string {
	t.Helper()
	code := source(t, "server", "agent", "attestor", "sources", "cmd")
	return regexp.MustCompile(`" ?\+\n\s*"`).ReplaceAllString(code, "")
}

// notQuoted is a code span that is a command or configuration, and not what a log says.
var notQuoted = regexp.MustCompile(`=|^(?:tpm-attestor|tpm2_|spire-server|journalctl|usermod|NodeAttestor)|--`)

// Whoever follows the questions of the symptom tree compares what they see with what it quotes.
// So all that the page quotes of ours is in the code, outside of its tables too. What it
// quotes of SPIRE is compared with SPIRE's logs by the end-to-end tests.
func TestSymptomsAreReal(t *testing.T) {
	code, found := texts(t), 0
	p := pageOf(t, "docs/troubleshooting.md")
	_, prose, ok := strings.Cut(p.prose, "<!-- messages: SPIRE -->\n\n")
	if !ok {
		t.Fatal("the page has no table of SPIRE's messages")
	}
	_, prose, _ = strings.Cut(prose, "\n\n")
	for _, span := range spans(strings.ReplaceAll(prose, "\n", " ")) {
		if !strings.Contains(span, " ") || notQuoted.MatchString(span) {
			continue
		}
		found++
		for part := range strings.SplitSeq(span, "…") {
			if !strings.Contains(code, strings.TrimSpace(part)) {
				t.Errorf("nothing says %q", span)
			}
		}
	}
	if found < 35 {
		t.Errorf("found only %d quotes: is the test looking in the right place?", found)
	}
}

// messagesIn returns the messages in all tables of a page that have one of the marks.
func messagesIn(t *testing.T, p page, marks ...string) (all []string) {
	t.Helper()
	rest := p
	for _, at := range tableMark.FindAllStringSubmatchIndex(p.prose, -1) {
		mark := p.prose[at[2]:at[3]]
		if !slices.Contains(marks, mark) {
			continue
		}
		rest.prose = p.prose[at[0]:]
		for _, row := range marked(t, rest, mark) {
			all = append(all, spans(row[0])...)
		}
	}
	return all
}

// A line of the log that the documentation does not have leaves whoever sees it
// alone: each message that the server or a source logs is in a table of what is logged, or
// begins with a message that is.
func TestLoggedMessagesAreDocumented(t *testing.T) {
	var tables []string
	for _, p := range pages(t) {
		tables = append(tables, messagesIn(t, p, "messages: logged")...)
	}
	logged := literals(source(t, "server", "sources"),
		`\blog\.(?:Debug|Info|Warn|Error|Log)\((?:\w+, )?"([^"]+)"`)
	logged = append(logged, literals(source(t, "server"), `\ba\.log\(ctx, \w+, "([^"]+)"`)...)
	for _, message := range logged {
		if !slices.ContainsFunc(tables, func(d string) bool {
			return strings.HasPrefix(message, strings.TrimSuffix(d, "…"))
		}) {
			t.Errorf("no table of what is logged has %q", message)
		}
	}
	if len(logged) < 20 {
		t.Errorf("found only %d messages: is the test looking in the right place?", len(logged))
	}
}

// A password that is given under a name which nothing reads is not used.
func TestPasswordsComeFromTheEnvironment(t *testing.T) {
	code := source(t, "cmd/internal/ekreport", "cmd/tpm-attestor")
	for _, p := range pages(t) {
		for _, name := range spans(p.prose) {
			password := strings.HasPrefix(name, "TPM_") && strings.HasSuffix(name, "_PASSWORD")
			if password && !strings.Contains(code, `"`+name+`"`) {
				t.Errorf("%s: nothing reads %s", p.file, name)
			}
		}
	}
}
