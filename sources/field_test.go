package sources_test

import (
	"errors"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Somebody who uses a source without a configuration file reads its constructor's error
// as it is: each mistake has the name of its field, on a line of its own.
func TestFieldErrorsAreReadable(t *testing.T) {
	err := errors.Join(sources.BadField("path", "is missing"), nil, sources.BadField("max_bytes", "is %d", -1))
	if got, want := err.Error(), "path is missing\nmax_bytes is -1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
