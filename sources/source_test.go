package sources_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// TestLater: a Load that succeeded may not turn into an error, with which a source that has
// recovered would go on failing.
func TestLater(t *testing.T) {
	if err := sources.Later(nil, time.Minute); err != nil {
		t.Error("no error has become one")
	}
	cause := errors.New("429 Too Many Requests")
	err := fmt.Errorf("load: %w", sources.Later(cause, time.Minute))
	if sources.Wait(err) != time.Minute || !errors.Is(err, cause) || err.Error() != "load: "+cause.Error() {
		t.Errorf("%v, to wait %v", err, sources.Wait(err))
	}
	if sources.Wait(cause) != 0 || sources.Wait(nil) != 0 {
		t.Error("an error without a wait has one")
	}
}
