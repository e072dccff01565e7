package sources_test

import (
	"errors"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A program that uses a source without a configuration file shows its constructor's error as it is:
// each mistake is on a line of its own and begins with the name of its field.
func TestFieldErrorsAreReadable(t *testing.T) {
	err := errors.Join(sources.BadField("path", "is missing"), nil, sources.BadField("max_bytes", "is %d", -1))
	if got, want := err.Error(), "path is missing\nmax_bytes is -1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
