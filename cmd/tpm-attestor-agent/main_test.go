package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
)

func TestMain(m *testing.M) {
	os.Exit(testscript.RunMain(m, map[string]func() int{
		"tpm-attestor-agent": func() int {
			main()
			return 0
		},
	}))
}

// Operators' scripts call the command and parse its output, so neither may change.
func TestScripts(t *testing.T) {
	full := swtpmtest.Start(t, swtpmtest.Options{})
	blank := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE")) // how long a command waits when it has ended
			env.Setenv("TPM", full.Device)
			env.Setenv("BLANK", blank.Device)
			return nil
		},
	})
}

// If the output cannot be written, the command fails. Otherwise a script would enrol a machine
// by an empty hash.
func TestUnwritableOutputFails(t *testing.T) {
	var stderr strings.Builder
	for _, args := range [][]string{{"-version"}, {"-help"}} {
		if code := run(context.Background(), args, os.Getenv, fullDisk{}, &stderr); code != 1 {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
	if !strings.Contains(stderr.String(), "disk is full") {
		t.Errorf("stderr %q", &stderr)
	}
}

// Scripts distinguish a wrong command line, which they must not repeat, from a failure such as
// a missing TPM.
func TestExitCodes(t *testing.T) {
	long := strings.Repeat("x", 65)
	for _, tt := range []struct {
		args     []string
		password string
		want     int
	}{
		{[]string{"-version"}, "", 0},
		{[]string{"-hash", "-device", "/nowhere/tpm0"}, "", 1},
		{[]string{"-hsah"}, "", 2},
		{[]string{"-hash", "-key"}, "", 2},
		{[]string{"-hash", "-key", "rsa1024"}, "", 2},
		{[]string{"-pem", "-device", "tpm0"}, "", 2},
		{[]string{"-ek", "-device", "/nowhere/tpm0"}, long, 2},
		{[]string{"-ek", "-hash"}, "", 2},
		{nil, "", 2},
	} {
		var stdout, stderr strings.Builder
		getenv := func(string) string { return tt.password }
		if code := run(t.Context(), tt.args, getenv, &stdout, &stderr); code != tt.want {
			t.Errorf("%q: exit code %d, want %d: %s", tt.args, code, tt.want, &stderr)
		}
		if (stdout.Len() > 0) != (tt.want == 0) || strings.Contains(stderr.String(), long) {
			t.Errorf("%q: %q, %q", tt.args, &stdout, &stderr)
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }
