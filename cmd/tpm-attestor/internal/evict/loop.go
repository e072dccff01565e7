package evict

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
)

// run looks again and again until ctx ends.
func (e *evicter) run(ctx context.Context) error {
	e.report.print(&event{Event: eventFollows, Reason: "follows " + e.site.name})
	for {
		wait := e.step(ctx)
		if e.report.err != nil {
			return fmt.Errorf("print: %w", e.report.err)
		}
		e.keepStatus()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// step reads the configuration again, and looks once.
func (e *evicter) step(ctx context.Context) (wait time.Duration) {
	changed, err := e.site.reread(ctx)
	changing := errors.Is(err, errChanging)
	if changing || changed {
		e.suspects = nil
	}
	if changed {
		e.report.print(&event{Event: eventFollows, Reason: "follows the changed " + e.site.name})
	}
	if e.restless(changing || changed) {
		err = errRestless
		e.report.raise(alarmConfiguration, err.Error())
	}
	if changing {
		return e.interval
	}
	e.unread = err
	return e.pass(ctx)
}

// restlessFor is how long the configuration may change again and again before there is an alarm.
const restlessFor = 2 * time.Minute

// errRestless says that nobody is evicted because the configuration keeps changing.
var errRestless = fmt.Errorf("the configuration has changed again and again for %v, and nobody is evicted while it "+
	"does: what writes the file?", restlessFor)

// restless notes whether the configuration has changed since the last look. An eviction needs two looks in a row
// without a change. restless reports whether there have been no such two looks for restlessFor.
func (e *evicter) restless(changed bool) bool {
	if e.alone++; changed {
		e.alone = 0
	}
	if e.alone >= 2 || e.calm.IsZero() { //nolint:mnd // see above
		e.calm = e.now()
	}
	return e.now().Sub(e.calm) >= restlessFor
}

// keepStatus writes the status. If that fails, it says so once and goes on: a full disk must not keep
// removed machines in.
func (e *evicter) keepStatus() {
	problem := ""
	if err := e.written(); err != nil {
		problem = err.Error()
	}
	if problem != "" && problem != e.unwritten {
		e.site.warn(problem)
	}
	e.unwritten = problem
}

// written writes the status, and returns an error if the output or the status could not be written.
func (e *evicter) written() error {
	if e.report.err != nil {
		return fmt.Errorf("print: %w", e.report.err)
	}
	if e.status == "" {
		return nil
	}
	if err := e.writeStatus(); err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}

// onceTimeout is how long a single look may take, with its confirmation.
const onceTimeout = 2 * time.Minute

// once looks again until each refused machine was seen twice, and evicts it then.
func (e *evicter) once(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, onceTimeout)
	defer cancel()
	for waiting := true; waiting; {
		wait := e.pass(within)
		waiting = false
		for _, s := range e.suspects {
			waiting = waiting || e.now().Sub(s.since) < e.confirmAfter
		}
		if _, failed := e.report.alarms[alarmSPIRE]; !waiting || failed {
			break
		}
		timer := time.NewTimer(wait)
		select {
		case <-within.Done():
			timer.Stop()
			return fmt.Errorf("the look has not ended: %w", within.Err())
		case <-timer.C:
		}
	}
	if err := within.Err(); err != nil {
		return fmt.Errorf("the look has not ended: %w", err)
	}
	e.report.print(&event{Event: eventPass, counts: &e.counts})
	return errors.Join(e.written(), e.exit())
}

// exit returns the exit code of a single look, as an error.
func (e *evicter) exit() error {
	for _, code := range []struct {
		alarm string
		code  int
	}{
		{alarmSPIRE, cli.ExitFailed},
		{alarmConfiguration, cli.ExitFailed},
		{alarmBrake, cli.ExitRefused},
		{alarmSources, cli.ExitCannotTell},
	} {
		if _, on := e.report.alarms[code.alarm]; on {
			return cli.Exit(code.code, nil)
		}
	}
	return nil
}
