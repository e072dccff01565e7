package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	os.Exit(testscript.RunMain(m, map[string]func() int{
		"tpm-attestor-server": func() int { main(); return 0 },
	}))
}

// What a person sees who runs the command by hand is part of the documentation.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true})
}

// A build that stamps no version still says which one it is.
func TestVersion(t *testing.T) {
	if got := versionString(); got == "" {
		t.Error("no version")
	}
	version = "v1.2.3"
	defer func() { version = "" }()
	if got := versionString(); got != "v1.2.3" {
		t.Errorf("version %q", got)
	}
	if _, err := readFile(t.TempDir()+"/none", os.Stdin); err == nil {
		t.Error("a missing file was read")
	}
}
