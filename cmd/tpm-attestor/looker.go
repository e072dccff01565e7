package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
)

// errHangs says that a file system has not answered.
var errHangs = errors.New("no answer: is the file system mounted, and its server up?")

// A looker waits for files that may be on a file system that hangs, and for the network.
type looker struct {
	lane     *admission.Lane
	patience time.Duration
}

// What is looked at may take patienceOfLooker. That is enough for a list of ten million machines.
const (
	patienceOfLooker = time.Minute
	mostHanging      = 64
)

func newLooker() looker {
	return looker{admission.NewLane("files to look at", mostHanging, func(bool) {}), patienceOfLooker}
}

// within calls f and returns its error. If f takes too long, the error is errHangs: f goes on then, and
// nothing that f writes may be read.
func (l looker) within(ctx context.Context, f func(context.Context) error) error {
	var err error
	if waited := l.lane.Do(ctx, l.patience, func(ctx context.Context) error {
		err = f(ctx)
		return nil
	}); waited != nil {
		return fmt.Errorf("%w (%w)", errHangs, waited)
	}
	return err
}
