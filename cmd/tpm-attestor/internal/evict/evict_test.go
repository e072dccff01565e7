package evict

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
)

func TestMain(m *testing.M) {
	os.Exit(testscript.RunMain(tidy{m}, map[string]func() int{"tpm-attestor": func() int {
		root := cli.Root(&cobra.Command{Use: "tpm-attestor"}, New)
		return cli.Run(context.Background(), root, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	}}))
}

// tidy are tests of which none may leave a goroutine behind.
type tidy struct{ m *testing.M }

func (t tidy) Run() int {
	code := t.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// Operators' scripts call the command and parse its output, so neither may change.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, UpdateScripts: os.Getenv("UPDATE_GOLDEN") != "",
		Setup: func(env *testscript.Env) error {
			f := startSPIRE(t)
			env.Defer(f.server.Stop)
			env.Values["spire"] = f
			env.Setenv("GORACE", os.Getenv("GORACE")) // how long a command waits when it has ended
			env.Setenv("SPIRE", f.socket)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"agent": addAgent, "evicted": wantEvicted, "timeless": timeless,
		},
	})
}

// addAgent adds an agent: agent PATH HASH [expired|banned|SELECTOR].
func addAgent(ts *testscript.TestScript, _ bool, args []string) {
	ts.Value("spire").(*fakeSPIRE).add("/spire/agent/tpm/"+args[0], args[1], func(a *types.Agent) {
		if slices.Contains(args[2:], "expired") {
			a.X509SvidExpiresAt = time.Now().Add(-time.Minute).Unix()
		}
		a.Banned = slices.Contains(args[2:], "banned")
		for _, selector := range args[2:] {
			a.Selectors = append(a.Selectors, &types.Selector{Type: attestorName, Value: selector})
		}
	})
}

// wantEvicted checks which agents were evicted so far, sorted.
func wantEvicted(ts *testscript.TestScript, _ bool, args []string) {
	var all []string
	for _, path := range ts.Value("spire").(*fakeSPIRE).evicted() {
		all = append(all, filepath.Base(path))
	}
	slices.Sort(all)
	if !slices.Equal(all, args) {
		ts.Fatalf("evicted: %q", all)
	}
}

// timeless writes a file, or the standard output, without its times and places to timeless.
func timeless(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(append(args, "stdout")[0])
	text = strings.ReplaceAll(text, filepath.Dir(ts.Getenv("SPIRE")), "$SPIRE")
	text = regexp.MustCompile(`[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,}Z`).ReplaceAllString(text, "<time>")
	text = regexp.MustCompile(`seconds [0-9.]+`).ReplaceAllString(text, "seconds <time>")
	ts.Check(os.WriteFile(ts.MkAbs("timeless"), []byte(text), 0o600))
}

// Scripts distinguish a wrong command line by the exit code. To leave the brake off for good would be to
// have none, and nobody tells of a change of the standard input.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{}, {"a", "b"}, {"a", "--force"}, {"-"}, {"a", "--bogus"}, {"a", "-o", "xml"},
	} {
		var stdout, stderr strings.Builder
		code := clitest.Run(t.Context(), New, append([]string{"evict"}, args...),
			cli.Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
		if code != cli.ExitUsage || stdout.Len() > 0 || !strings.HasSuffix(stderr.String(), "--help.\n") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, &stdout, &stderr)
		}
	}
}

// The command has a help with an example.
func TestHelp(t *testing.T) {
	t.Parallel()
	var stdout strings.Builder
	code := clitest.Run(t.Context(), New, []string{"evict", "--help"},
		cli.Streams{In: strings.NewReader(""), Out: &stdout, Err: io.Discard})
	if code != 0 || !strings.Contains(stdout.String(), "Examples:\n  tpm-attestor evict") {
		t.Errorf("exit code %d\n%s", code, &stdout)
	}
}

// What others have written stays on its line, and tells a terminal nothing: neither by the controls of ASCII
// nor by those of Unicode, nor by turning the direction of the text.
func TestHostileReason(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	r := &reporter{out: &out, format: cli.Table, now: time.Now, alarms: map[string]alarm{}}
	r.print(&event{Event: eventAlarm, Alarm: alarmSources, Reason: "a\x1b[2Jb\nc\u009b2Jd\u202ee\u2028f"})
	if got, want := out.String(), "ALARM sources: a [2Jb c 2Jd e f\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
