package attestortest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// SkipTB is the part of testing.TB that FieldCertificates needs.
type SkipTB interface {
	TB
	Skipf(format string, args ...any)
}

// FieldCertificates returns the folder of real EK certificates and their CAs, which are
// not part of this repository: EK_TESTDATA names it, and the default is
// ../shared/testdata/ek relative to the folder of go.mod. If there is no such folder, the
// test is skipped, or fails if REQUIRE_EK_TESTDATA is not empty.
func FieldCertificates(tb SkipTB) string {
	tb.Helper()
	dir, err := fieldFolder()
	if err == nil {
		return dir
	}
	report := tb.Skipf
	if os.Getenv("REQUIRE_EK_TESTDATA") != "" {
		report = tb.Fatalf
	}
	report("DID NOT RUN: the real EK certificates are not there: "+
		"set EK_TESTDATA to the folder that holds them (%v)", err)
	return ""
}

// MoreFieldCertificates returns the folder of more real certificates, each with something
// peculiar. Its path is that of the first folder with "-more" appended.
func MoreFieldCertificates(tb SkipTB) string {
	tb.Helper()
	dir := FieldCertificates(tb)
	if dir == "" {
		return ""
	}
	more := filepath.Clean(dir) + "-more"
	if _, err := os.Stat(more); err != nil {
		tb.Skipf("DID NOT RUN: further real EK certificates are not there: %v", err)
		return ""
	}
	return more
}

func fieldFolder() (string, error) {
	dir := os.Getenv("EK_TESTDATA")
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "..", "shared", "testdata", "ek")
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", dir)
	}
	return dir, err
}

// moduleRoot returns the folder of go.mod: the test runs in it or below it.
func moduleRoot() (string, error) {
	dir, err := filepath.Abs(".")
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			err = errors.New("there is no go.mod above the working directory")
		}
		dir = parent
	}
	return "", err
}
