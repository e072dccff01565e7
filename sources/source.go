// Package sources decides whether a TPM is one of ours.
//
// A [Source] is one backend that knows some TPMs: a directory of hashes, a list
// on a web server, the certificate authorities of a vendor. This package is what a
// backend imports, and nothing else. Package policy says how the verdicts of several
// sources combine; package admission runs them, and provides what they all need: a name,
// a deadline, a guard against panics, logging, a life cycle and a status.
//
// An answer has one of three values. A source lists a TPM, or does not list it, or
// cannot tell; the last is an error, and an error never admits anybody.
//
// The package uses only the standard library, so that third-party backends can
// import it without further dependencies. Package sourcetest holds the tests that
// every backend must pass.
package sources

import (
	"context"
	"errors"
	"time"
)

// ErrNeedsChallenge is returned by Check if the answer depends on Evidence.Proof
// and that is still nil. It is not a failure: the source is asked again once the
// TPM has answered its challenge. A source that returns it although
// Evidence.Proof is set cannot tell.
var ErrNeedsChallenge = errors.New("needs the answer to the challenge")

// ErrNeedsNetwork is returned by a Fetcher's Check if the answer depends on
// something that has to be requested over the network. It is not a failure: Fetch
// is called last of all, if the answer still matters then.
var ErrNeedsNetwork = errors.New("needs the network")

// A Source knows some TPMs.
//
// Its constructor checks the configuration and does nothing else: it opens no file
// or socket and starts no goroutine, since configurations are also checked where
// they will never run. Its error has a [FieldError] for each mistake. A source that
// loads data is also a [Loader], and a [Watcher] if it is told of changes. A source that
// has to fetch over the network what evidence names is a [Fetcher], and one that can
// report what it serves is a [Reporter].
type Source interface {
	// Check reports whether the source lists the TPM that ev describes.
	//
	//  1. The zero Verdict means "not listed", which is a fact, not an error.
	//  2. An error means "cannot tell"; the Verdict is then zero.
	//  3. Check is called from several goroutines at once, and while Load and
	//     Watch are executing. Each call answers from one whole state of the
	//     source: before a change or after it, never in between. As long as
	//     there is no state, it cannot tell.
	//  4. Check returns when ctx ends. A call that is stuck in the kernel (on a
	//     mount whose server is gone) cannot: whoever asks then stops waiting for
	//     it, takes the answer for "cannot tell" and counts the call against the
	//     source's slots until it returns.
	//  5. ev and everything it points to belong to the caller. Check must not
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

// A Fetcher is a Source that has to fetch over the network what some evidence names:
// the issuer of an EK certificate, or the certificate itself. Its Check answers from
// what is configured and what was fetched before, and makes no requests.
type Fetcher interface {
	Source
	// Fetch answers like Check, under the same contract, but may use the network.
	// It is called only after Check has returned ErrNeedsNetwork for the same
	// evidence; only with Evidence.Proof, so that only a TPM that holds its EK can
	// cause a request; and only while the answer can still change the decision or
	// the selectors. Its time is limited by Options.FetchTimeout, and its slots are
	// separate from those of Check.
	//
	// ErrNeedsNetwork from Fetch means "cannot tell". What several TPMs need is
	// fetched once: the source keeps it, and remembers failures for a while.
	Fetch(ctx context.Context, ev *Evidence) (Verdict, error)
}

// A Loader is a Source that loads what it serves. Until a Load has succeeded, or has
// found good data of an earlier process, it cannot tell.
type Loader interface {
	Source
	// Load makes one attempt to load the source's data and returns when it is
	// done or ctx has ended. On error, the last good data stays in use, and the next
	// attempt is made sooner; if the origin has asked to be left alone for a while, the
	// error is one of Later. Calls never overlap, but Load may be called again at any
	// time: it sees every change that was made before the call.
	Load(ctx context.Context) error
	// Schedule says how often to load. It is constant.
	Schedule() Schedule
}

// Schedule says how often a Loader is loaded.
type Schedule struct {
	// Every is the longest time from one Load to the next, positive.
	Every time.Duration
	// Early is true if a change at the origin is seen at the next Load only, and a TPM
	// that is not listed may have been listed a moment ago: a Load may then be made
	// ahead of time, a few times in Every, so that such a machine is not turned away.
	Early bool
}

// Later returns an error of Load whose origin has asked to be left alone for a while.
// Its text is err's.
func Later(err error, wait time.Duration) error { return &laterError{err, wait} }

// Wait returns for how long the origin has asked to be left alone, by an error of Load;
// zero if it has not.
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

// A Watcher is a Source that is told of changes at its origin, or has work of its own to
// do while it runs.
type Watcher interface {
	Source
	// Watch calls changed after something has changed, which causes a Load of a Loader
	// soon after; many calls may cause one. It returns when ctx has ended and everything
	// that it started has ended, too. Calls never overlap. If it returns or panics
	// before ctx has ended, it is called again after a pause: Schedule alone finds
	// changes meanwhile.
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
	// Confirmed is when that data was last known to be current: when it was
	// last read, or when its origin last said that it had not changed. While the
	// origin fails, its age grows. It is zero if there is no data, and for a
	// source that reads its data afresh for each check.
	Confirmed time.Time
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
