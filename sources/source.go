// Package sources decides whether a TPM is one of ours.
//
// A [Source] is one backend that knows some TPMs: a directory of hashes, a list
// behind a web server, the certificate authorities of a vendor. A [Set] runs
// several of them under one [Policy] and gives each what they all need: a
// name, a deadline, a guard against panics, logging, a life cycle and a status.
//
// Every answer has three values. A source lists a TPM, or does not list it, or
// cannot tell; the last is an error, and an error never admits anybody.
//
// The package uses the standard library only, so that a backend of somebody
// else's may import it without taking on anything more. Package sourcetest
// holds the tests that every backend passes.
package sources

import (
	"context"
	"errors"
	"time"
)

// ErrNeedsChallenge is what a source returns from Check while Evidence.Proof is
// nil and its answer depends on the proof. It is no failure: the source is
// asked again once the TPM has answered its challenge. A source that returns it
// when Evidence.Proof is set cannot tell.
var ErrNeedsChallenge = errors.New("needs the answer to the challenge")

// ErrNeedsNetwork is what a Fetcher returns from Check where its answer depends on
// something that it would have to ask others for over the network. It is no
// failure: the source is fetched from where the answer still matters, and last of
// all.
var ErrNeedsNetwork = errors.New("needs the network")

// ErrWouldWait is what a Prompt source returns from CheckNow where it has no answer
// at hand. It is no failure: Check is asked.
var ErrWouldWait = errors.New("would have to wait for the answer")

// A Source knows some TPMs.
//
// What makes one does nothing else: it checks its configuration and opens no
// file, no socket and no goroutine, since configurations are also checked where
// they will never run. A source that loads or follows data is a [Refresher], a
// [Runner] or both as well, and a [Poller] where changes take their time; one
// that may have its answer at hand is [Prompt]; one that has to ask the network for what
// evidence names is a [Fetcher]; one that can say what it serves is a [Reporter].
type Source interface {
	// Check reports whether the source lists the TPM that ev describes.
	//
	//  1. The zero Verdict means "not listed", which is a fact and no error.
	//  2. An error means "cannot tell"; the Verdict is then zero.
	//  3. Check is called from several goroutines at once, and while Refresh
	//     and Run are at work. Each call answers from one whole state of the
	//     source: before a change or after it, nothing in between. Where
	//     there is no state yet, it cannot tell.
	//  4. Check returns when ctx ends. A call that is stuck in the kernel (a
	//     mount whose server has gone) cannot: the Set then stops waiting for
	//     it, answers "cannot tell" and counts it against the source's slots
	//     until it returns.
	//  5. ev and all that it points to belong to the caller. Check reads them,
	//     changes nothing and keeps nothing after it has returned. The Verdict
	//     belongs to the caller, too: what it points to is never changed later,
	//     and changing it changes no later answer.
	//  6. Nothing that ev holds is written to where the source reads.
	//  7. While ev.Proof is nil, the error may be ErrNeedsChallenge. That of a
	//     Fetcher may be ErrNeedsNetwork, before the challenge and after it.
	Check(ctx context.Context, ev *Evidence) (Verdict, error)
}

// A Prompt source is a Source that has its answer at hand, always or at times: what
// holds its data in memory, or finds it in that of the kernel.
//
// Such an answer is waited for in the goroutine of the attestation. To hand a
// question to another one, as a Set does where a source may hang, takes several
// times as long as a look into memory.
type Prompt interface {
	Source
	// CheckNow answers as Check does, by the same contract, where it need wait for
	// nothing, and otherwise returns ErrWouldWait: Check is asked then. It waits
	// for no storage, no network, no goroutine and no lock that is held while
	// something is waited for; it starts no goroutine. It is under the Set's guard
	// against panics and not under its deadline: what waits here, or ends its
	// goroutine, takes the attestation with it.
	CheckNow(ctx context.Context, ev *Evidence) (Verdict, error)
}

// A Fetcher is a Source that has to ask the network for what some evidence names:
// the issuer of an EK certificate, or the certificate itself. Its Check answers
// from what is configured and from what was fetched before, and asks nobody.
type Fetcher interface {
	Source
	// Fetch answers as Check does, by the same contract, and may ask the network
	// for it. It is called only after Check has returned ErrNeedsNetwork for the
	// same evidence, only with Evidence.Proof, so that none but a TPM that holds
	// its EK causes a request, and only while the answer can still change the
	// decision or the selectors. Its time is Options.FetchTimeout, and its slots
	// are not those of Check.
	//
	// ErrNeedsNetwork from Fetch means "cannot tell". What other TPMs need as well
	// is fetched once: the source keeps it, failures for a while too.
	Fetch(ctx context.Context, ev *Evidence) (Verdict, error)
}

// A Refresher is a Source that loads what it serves. Until a first Refresh has
// succeeded it cannot tell.
type Refresher interface {
	Source
	// Refresh makes one attempt to load the source's data and returns when
	// it has done so or ctx has ended. On an error the last good data stays.
	// It is never called twice at once, and it may be called again at any
	// time: a change that was made before the call is seen by it.
	Refresh(ctx context.Context) error
}

// A Runner is a Source that follows its data while it runs.
type Runner interface {
	Source
	// Run follows changes until ctx ends and returns once everything that it
	// started has ended. refresh makes one attempt through Refresh under the
	// Set's own deadline, guard and log, and returns its error; Run calls it
	// and never Refresh. The first Refresh has been made when Run is called,
	// whether or not it succeeded.
	//
	// Run is never called twice at once. Where it returns or panics before
	// ctx has ended it is called again, after a pause.
	Run(ctx context.Context, refresh func() error) error
}

// A Poller is a Source whose data is on its way to it for a while: what changed
// at its origin is seen at the next poll. Where a TPM that it does not list would
// be refused, and where it could be admitted if it did, a Set asks for a poll at
// once and then asks the source again, so that a machine that was listed a moment
// ago is not turned away. Only sources that enforced allow rules name are polled
// in this way.
type Poller interface {
	Refresher
	// RefreshEarly reports whether the source may be refreshed now, before its
	// time, and counts that refresh: the Set makes it, at once. The source's own
	// limit is what keeps strangers from polling its origin. It is never called
	// twice at once, is cheap and does not wait. Attestations that come while a
	// refresh is under way share it, and nobody asks for another.
	RefreshEarly() bool
}

// A Reporter is a Source that can say what it serves.
type Reporter interface {
	Source
	// Status is cheap, and safe to call at any time.
	Status() Status
}

// Status is what a source serves at one moment.
type Status struct {
	// Loaded is when the data that is being served was loaded; zero where
	// there is none.
	Loaded time.Time
	// Confirmed is when that data was last known to be current: when it was
	// last read, or when its origin last said that it had not changed. Where
	// an origin fails, its age grows. Zero where there is no data, and in a
	// source that reads its data afresh for each check.
	Confirmed time.Time
	// Next is when the source will make its next attempt by itself; zero
	// where none is planned.
	Next time.Time
	// Entries is the number of entries being served: TPMs in a list,
	// certificates in a set of authorities.
	Entries int
	// Serial is the serial number of the list being served; zero where it
	// has none.
	Serial uint64
	// Expires is when the list being served says itself that it is no longer
	// good; zero where it does not say.
	Expires time.Time
	// Warnings are what a person should mend: parts of the data that were left
	// out, each with its place and the reason, and what keeps the source from
	// working as well as it could. A Set logs them where they change.
	Warnings []string
}
