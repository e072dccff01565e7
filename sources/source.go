// Package sources is the contract between a source and its caller. It is what a backend imports.
//
// A [Source] is one backend that knows some TPMs: a directory of hashes, a list on a web
// server, the certificate authorities of a vendor. Package policy says how the verdicts of
// several sources combine. Package admission runs sources, and provides what they all need: a
// name, a deadline, a guard against panics, logging, a life cycle and a status.
//
// An answer has one of three values: a source lists a TPM, does not list it, or cannot tell. The
// last is an error, and an error never admits anybody.
//
// The package uses only the standard library, so that third-party backends can import it
// without further dependencies. Package sourcetest has the tests that every backend must pass.
package sources

import (
	"context"
	"errors"
	"time"
)

// ErrNeedsChallenge is returned by Check if the answer depends on Evidence.Proof, which is nil
// before the challenge. It is not a failure: the source is asked again after the TPM has answered
// its challenge. If a source returns it although Evidence.Proof is set, that means "cannot tell".
var ErrNeedsChallenge = errors.New("needs the answer to the challenge")

// ErrNeedsNetwork is returned by a Fetcher's Check if the answer depends on something that must be
// requested over the network. It is not a failure: Fetch is called later, if the answer still
// matters then.
var ErrNeedsNetwork = errors.New("needs the network")

// A Source knows some TPMs.
//
// Its constructor checks the configuration and does nothing else: it opens no file
// or socket and starts no goroutine, since configurations are also checked where
// they will never run. Its error has a [FieldError] for each mistake.
//
// A source that loads data is also a [Loader]. A source that notices changes is a [Watcher], one
// that must fetch over the network what evidence names is a [Fetcher], and one that can report what
// it serves is a [Reporter].
type Source interface {
	// Check reports whether the source lists the TPM that ev describes.
	//
	//  1. The zero Verdict means "not listed", which is a fact, not an error.
	//  2. An error means "cannot tell"; the Verdict is then zero.
	//  3. Check is called from several goroutines at once, and while Load and
	//     Watch are executing. Each call answers from one whole state of the
	//     source: before a change or after it, never in between. As long as
	//     there is no state, it cannot tell.
	//  4. Check returns when ctx ends. A call that is stuck in the kernel, on a
	//     mount whose server has gone, cannot do so: its caller stops waiting for
	//     it, takes that for "cannot tell" and counts the call against the
	//     source's slots until it returns.
	//  5. ev and everything that it points to belong to the caller. Check must not
	//     modify them, nor retain them after it returns. The Verdict belongs to
	//     the caller, too: what it points to never changes later, and modifying
	//     it does not affect later answers.
	//  6. Nothing in ev is ever written to where the source reads.
	//  7. While ev.Proof is nil, the error may be ErrNeedsChallenge, and the answer
	//     is only a filter. With ev.Proof, Check is called again and answers in
	//     full, from its data as it is then: whatever it said before counts for
	//     nothing. A Fetcher may return ErrNeedsNetwork both before and after the
	//     challenge.
	Check(ctx context.Context, ev *Evidence) (Verdict, error)
}

// A Fetcher is a Source that may need the network for some evidence: for the issuer of an EK
// certificate, for example, or for the certificate itself. Its Check answers from what is
// configured and what was fetched before, and makes no requests.
type Fetcher interface {
	Source
	// Fetch answers like Check, under the same contract, but may use the network. It is
	// called only after Check has returned ErrNeedsNetwork for the same evidence; only with
	// Evidence.Proof, so that only a TPM that holds its EK can cause a request; and only
	// while the answer can still change the decision or the selectors. ctx is the only
	// limit on its time, and its slots are separate from those of Check.
	//
	// ErrNeedsNetwork from Fetch means "cannot tell". What several TPMs need is fetched only once:
	// the source keeps it, and remembers failures for a while.
	Fetch(ctx context.Context, ev *Evidence) (Verdict, error)
}

// A Loader is a Source that loads what it serves. It cannot tell until a Load has succeeded, or has
// found good data left by an earlier process.
type Loader interface {
	Source
	// Load makes one attempt to load the source's data, and returns when that is done or ctx has
	// ended. After an error, the last good data stays in use, and the next attempt comes sooner
	// than usual; if the origin has asked to be left alone for a while, Load returns an error made
	// by Later. Calls never overlap, but Load may be called at any time. It sees every change that
	// was made before the call.
	Load(ctx context.Context) error
	// Schedule says how often to load. It always returns the same value.
	Schedule() Schedule
}

// Schedule says how often a Loader is loaded.
type Schedule struct {
	// Every is the longest time from one Load to the next, positive.
	Every time.Duration
	// Early is true if a change at the origin is noticed only by the next Load. A TPM that is not
	// listed may have been listed in the meantime, so attestations may cause a few Loads ahead of
	// schedule.
	Early bool
}

// Later returns an error for Load that says that the origin has asked to be left alone for a while.
// It has the text of err, and is nil if err is nil.
func Later(err error, wait time.Duration) error {
	if err == nil {
		return nil
	}
	return &laterError{err, wait}
}

// Wait returns how long the origin has asked to be left alone, according to an error of Load. It
// returns zero if the origin has not asked.
func Wait(err error) time.Duration {
	if later := (*laterError)(nil); errors.As(err, &later) {
		return later.wait
	}
	return 0
}

type laterError struct {
	error
	wait time.Duration
}

func (e *laterError) Unwrap() error { return e.error }

// A Watcher is a Source that notices changes at its origin, or that has work of its own to do while
// it runs.
type Watcher interface {
	Source
	// Watch calls changed after something has changed. For a Loader, that causes a Load soon after;
	// several calls may cause only one Load. Watch returns when ctx has ended and everything that
	// it has started has ended, too. Calls never overlap. If Watch returns or panics before ctx has
	// ended, it is called again after a pause; until then, only Schedule finds changes.
	Watch(ctx context.Context, changed func()) error
}

// A Reporter is a Source that can report what it serves.
type Reporter interface {
	Source
	// Status is cheap, and safe to call at any time.
	Status() Status
}

// Status describes what a source serves at one moment.
type Status struct {
	// Loaded is when the data being served was loaded; zero if there is none.
	Loaded time.Time
	// Confirmed is when that data was last known to be current: when it was last read, or
	// when its origin last said that it had not changed. It stays as it is while the origin
	// fails. It is zero if there is no data, and for a source that reads its data afresh
	// for each check.
	Confirmed time.Time
	// Stale is when the data stops being served if it is not confirmed again; zero if there is no
	// such time.
	Stale time.Time
	// Entries is the number of entries being served: TPMs in a list,
	// certificates in a set of authorities.
	Entries int
	// Serial is the serial number of the list being served; zero if it has none.
	Serial uint64
	// Expires is when the list being served expires, according to the list itself;
	// zero if it does not say.
	Expires time.Time
	// Warnings describe what an operator should fix: parts of the data that were
	// left out, each with its place and the reason, and whatever keeps the source
	// from working as well as it could. They are logged when they change.
	Warnings []string
}
