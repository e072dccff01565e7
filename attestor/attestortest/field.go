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
	return field(tb, func(dir string) string { return dir })
}

// MoreFieldCertificates returns the folder of more real certificates, each unusual in some way: the
// path that FieldCertificates returns, with "-more" appended. If there is no such folder,
// MoreFieldCertificates does what FieldCertificates does if its folder is missing.
func MoreFieldCertificates(tb SkipTB) string {
	tb.Helper()
	return field(tb, func(dir string) string { return dir + "-more" })
}

// FieldCases returns the folder of small inputs that went wrong: "cases", beside the first
// folder. If it is not there, the same happens as in FieldCertificates.
func FieldCases(tb SkipTB) string {
	tb.Helper()
	return field(tb, func(dir string) string { return filepath.Join(filepath.Dir(dir), "cases") })
}

// EventLogs returns the folder of event logs of real machines, with the values of their PCRs in
// pcrs.json: "eventlog", beside the first folder. If it is not there, the same happens as in
// FieldCertificates.
func EventLogs(tb SkipTB) string {
	tb.Helper()
	return field(tb, func(dir string) string { return filepath.Join(filepath.Dir(dir), "eventlog") })
}

// field returns one of the folders, by its path relative to the first one.
func field(tb SkipTB, of func(dir string) string) string {
	tb.Helper()
	dir, err := fieldFolder()
	if err == nil {
		dir = of(filepath.Clean(dir))
		err = isFolder(dir)
	}
	if err == nil {
		return dir
	}
	report := tb.Skipf
	if os.Getenv("REQUIRE_EK_TESTDATA") != "" {
		report = tb.Fatalf
	}
	report("DID NOT RUN: data of real machines are not there: "+
		"set EK_TESTDATA to the folder of EK certificates that they are beside (%v)", err)
	return ""
}

// fieldFolder returns where the first folder is, or should be.
func fieldFolder() (string, error) {
	if dir := os.Getenv("EK_TESTDATA"); dir != "" {
		return dir, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "..", "shared", "testdata", "ek"), nil
}

func isFolder(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", dir)
	}
	return err
}

// moduleRoot returns the folder of go.mod. The test runs in that folder or below it.
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
