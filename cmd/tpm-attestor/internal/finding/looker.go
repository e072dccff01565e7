package finding

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
)

// ErrHangs says that a file system has not answered in time.
var ErrHangs = errors.New("no answer: is the file system mounted, and its server up?")

// A Looker reads files, and asks the network, with a time limit: a file system may hang.
type Looker struct {
	lane    *admission.Lane
	timeout time.Duration
}

const (
	// lookTimeout is the time limit. It is enough for a list of ten million machines.
	lookTimeout = time.Minute
	// mostHanging is how many calls may run or hang at a time.
	mostHanging = 64
)

// NewLooker returns a Looker that waits a minute for each thing.
func NewLooker() Looker {
	return Looker{admission.NewLane("files to look at", mostHanging, func(bool) {}), lookTimeout}
}

// Within calls f in a goroutine of its own, and returns the error of f. If f takes too long, Within returns ErrHangs:
// f may still run then, and the caller must not read what f writes.
func (l Looker) Within(ctx context.Context, f func(context.Context) error) error {
	var err error
	if waited := l.lane.Do(ctx, l.timeout, func(ctx context.Context) error {
		err = f(ctx)
		return nil
	}); waited != nil {
		return fmt.Errorf("%w (%w)", ErrHangs, waited)
	}
	return err
}
