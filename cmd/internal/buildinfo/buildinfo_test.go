package buildinfo_test

import (
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
)

// A command has a version even if it was built without make, for bug reports.
func TestVersion(t *testing.T) {
	if buildinfo.Version("") == "" {
		t.Error("no version")
	}
	if got := buildinfo.Version("v1.2.3"); got != "v1.2.3" {
		t.Errorf("version %q", got)
	}
}
