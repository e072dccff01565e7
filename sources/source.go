// Package sources decides whether a TPM is one of ours.
//
// A [Source] is one backend that knows some TPMs: a directory of hashes, a list
// on a web server, the certificate authorities of a vendor. A [Set] runs several
// of them under one [Policy] and provides what they all need: a name, a deadline, a
// guard against panics, logging, a life cycle and a status.
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

// ErrWouldWait is returned by CheckNow of a Prompt source that has no answer at
// hand. It is not a failure: Check is called instead.
var ErrWouldWait = errors.New("would have to wait for the answer")

// A Source knows some TPMs.
//
// Its constructor checks the configuration and does nothing else: it opens no file
// or socket and starts no goroutine, since configurations are also checked where
// they will never run. A source that loads or follows data is also a [Refresher], a
// [Runner] or both, and a [Poller] if changes take time to arrive. One that may have
// its answer at hand is [Prompt], one that has to fetch over the network what evidence
// names is a [Fetcher], and one that can report what it serves is a [Reporter].
type Source interface {
	// Check reports whether the source lists the TPM that ev describes.
	//
	//  1. The zero Verdict means "not listed", which is a fact, not an error.
	//  2. An error means "cannot tell"; the Verdict is then zero.
	//  3. Check is called from several goroutines at once, and while Refresh
	//     and Run are executing. Each call answers from one whole state of the
	//     source: before a change or after it, never in between. As long as
	//     there is no state, it cannot tell.
	//  4. Check returns when ctx ends. A call that is stuck in the kernel (on a
	//     mount whose server is gone) cannot: the Set then stops waiting for it,
	//     answers "cannot tell" and counts the call against the source's slots
	//     until it returns.
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

// A Prompt source is a Source that has its answer at hand, always or sometimes,
// because its data is in its own memory or in the kernel's.
//
// Such an answer is obtained in the attestation's own goroutine. Handing the
// question to another goroutine, as a Set does for a source that may hang, takes
// several times as long as a look into memory.
type Prompt interface {
	Source
	// CheckNow answers like Check, under the same contract, if it can do so without
	// waiting, and otherwise returns ErrWouldWait: Check is called then. It must not
	// wait for storage, the network, a goroutine, or a lock that is held while
	// waiting for anything, and must not start a goroutine. The Set guards it
	// against panics but not by a deadline: a call that waits, or that ends its
	// goroutine, takes the attestation with it.
	CheckNow(ctx context.Context, ev *Evidence) (Verdict, error)
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

// A Refresher is a Source that loads what it serves. Until a Refresh has succeeded,
// it cannot tell.
type Refresher interface {
	Source
	// Refresh makes one attempt to load the source's data and returns when it is
	// done or ctx has ended. On error, the last good data stays in use. Calls
	// never overlap, but Refresh may be called again at any time: it sees every
	// change that was made before the call.
	Refresh(ctx context.Context) error
}

// A Runner is a Source that follows its data while it runs.
type Runner interface {
	Source
	// Run follows changes until ctx ends and returns once everything it started
	// has ended. The function refresh makes one attempt through Refresh, under
	// the Set's own deadline, guard and log, and returns its error; Run must call
	// it and never Refresh itself. The first Refresh has been made before Run is
	// called, whether or not it succeeded. For a source that is no Refresher, refresh
	// asks Check about a TPM that nobody has, and takes note of what Status says.
	//
	// Calls of Run never overlap. If it returns or panics before ctx has ended, it
	// is called again after a pause.
	Run(ctx context.Context, refresh func() error) error
}

// A Poller is a Source whose data takes a while to arrive: a change at its origin is
// seen at the next poll. If a TPM that it does not list would be refused, but could be
// admitted if it were listed, a Set requests an immediate poll and then asks the source
// again, so that a machine that was listed a moment ago is not turned away. Only
// sources named by enforced allow rules are polled in this way.
type Poller interface {
	Refresher
	// RefreshEarly reports whether the source may be refreshed now, ahead of
	// schedule, and counts that refresh, which the Set then makes at once. The
	// source's own limit is what keeps strangers from polling its origin. Calls
	// never overlap; RefreshEarly must be cheap and must not wait. Attestations
	// that arrive while a refresh is in progress share it and request no other.
	RefreshEarly() bool
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
	// Next is when the source will make its next attempt on its own; zero if none
	// is scheduled.
	Next time.Time
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
	// from working as well as it could. A Set logs them when they change.
	Warnings []string
}
