package buildinfo_test

import (
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/buildinfo"
)

// The build stamps a version; without it there is still something to say.
func TestVersion(t *testing.T) {
	if buildinfo.Version("") == "" {
		t.Error("no version")
	}
	if got := buildinfo.Version("v1.2.3"); got != "v1.2.3" {
		t.Errorf("version %q", got)
	}
}
