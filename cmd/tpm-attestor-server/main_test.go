package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	os.Exit(testscript.RunMain(m, map[string]func() int{
		"tpm-attestor-server": func() int { main(); return 0 },
	}))
}

// Operators' scripts call the command and parse its output, so neither may change.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true})
}

// A configuration that is too long is refused. If it were cut off instead, the rest of its
// rules would be missing.
func TestReadAtMost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if _, err := readAtMost(file, nil, 3); err == nil {
		t.Error("a missing file was read")
	}
	if err := os.WriteFile(file, []byte("four"), 0o600); err != nil {
		t.Fatal(err)
	}
	if content, err := readAtMost(file, nil, 4); err != nil || string(content) != "four" {
		t.Errorf("%q, %v", content, err)
	}
	if content, err := readAtMost(file, nil, 3); err == nil || content != nil {
		t.Errorf("%q", content)
	}
	if content, err := readAtMost("-", strings.NewReader("in"), 4); err != nil || string(content) != "in" {
		t.Errorf("%q, %v", content, err)
	}
}
