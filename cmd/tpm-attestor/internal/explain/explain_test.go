package explain

import (
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// explain knows each outcome that the server logs, and each sentence that it tells an agent. One
// that was added to the server alone would leave an operator with nothing.
func TestExplainKnowsTheServer(t *testing.T) {
	outcomes := literals(t, `outcome\w+ +outcome = "(\w+)"`, "failure.go")
	if len(outcomes) < 10 {
		t.Errorf("found only %d outcomes: is the test looking in the right place?", len(outcomes))
	}
	for _, o := range outcomes {
		if _, ok := outcomesInWords[o]; !ok {
			t.Errorf("the outcome %q is not explained", o)
		}
	}
	told := literals(t, "told: +[\"`]([^\"`]+)[\"`]", "attest.go", "failure.go", "firstuse.go", "quote.go", "svidkey.go")
	told = append(told, literals(t, `(no SVID for this agent)`, "composer/composer.go")...)
	if len(told) < 10 {
		t.Errorf("found only %d sentences: is the test looking in the right place?", len(told))
	}
	for _, sentence := range told {
		if sentence == "the stream has ended" { // no agent hears it
			continue
		}
		if _, ok := explainLine("nodeattestor(tpm): " + sentence); !ok {
			t.Errorf("the sentence %q is not explained", sentence)
		}
	}
}

// literals returns what a pattern finds in files of the server.
func literals(t *testing.T, pattern string, files ...string) (all []string) {
	t.Helper()
	for _, name := range files {
		source, err := os.ReadFile("../../../../server/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(source), -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// Logs come from elsewhere: no line makes the command panic, and what it prints has no character
// that a terminal would obey.
func FuzzExplainLine(f *testing.F) {
	for _, seed := range []string{
		`msg="Attestation failed" outcome=refused denied_by=x sources="a: listed (b; c); d: cannot tell: e"`,
		`{"@message":"Machine admitted","unsure":"x","sources":"x: needs the challenge"}`,
		`nodeattestor(tpm): this TPM is not admitted`, `{"msg":`, `sources="; ; x: "`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		l, ok := explainLine(line)
		if !ok {
			return
		}
		var b strings.Builder
		l.write(&b, false)
		if strings.ContainsFunc(strings.ReplaceAll(b.String(), "\n", ""), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%q is explained by %q", line, b.String())
		}
	})
}

// A line of any length, of another program, hides no other line and takes no memory.
func TestLongLines(t *testing.T) {
	const short = "nodeattestor(tpm): x"
	long := strings.Repeat("A", maxLogLine)
	var got []int
	err := eachLine(io.MultiReader(
		strings.NewReader(short+"\n"+long+"\n"+short+"\r\n\n"),
		io.LimitReader(endless{}, 64<<20), strings.NewReader("\n"+short),
	), func(n int, line string) {
		if got = append(got, n); line != short && line != "" {
			t.Errorf("line %d has %d bytes", n, len(line))
		}
	})
	if want := []int{1, 3, 4, 6}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
