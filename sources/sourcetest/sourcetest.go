// Package sourcetest holds the tests that every source must pass, whether its backend
// is part of this project or not, and fakes for testing code that uses sources.
//
// A backend's test provides functions to create and change the backing data, and the suite does the
// rest:
//
//	func TestConformance(t *testing.T) {
//		sourcetest.Run(t, sourcetest.Harness{
//			Attributes: true,
//			New: func(tb testing.TB) sourcetest.Backend {
//				dir := tb.TempDir()
//				file := func(ev *sources.Evidence) string { return filepath.Join(dir, ev.EKHash.String()) }
//				return sourcetest.Backend{
//					Open: func() sources.Source { return hashdir.New(…) },
//					List: func(ev *sources.Evidence, a sources.Attributes) {
//						os.WriteFile(file(ev), encode(a), 0o600)
//					},
//					Unlist:  func(ev *sources.Evidence) { os.Remove(file(ev)) },
//					Break:   func() { os.Rename(dir, dir+".away") },
//					Mend:    func() { os.Rename(dir+".away", dir) },
//					Content: func() any { return sourcetest.Tree(dir) },
//				}
//			},
//		})
//	}
//
// The contract under test is in the doc comments of [sources.Source] and of the
// optional interfaces next to it. Run the suite with -race: some violations of the
// contract show up only there.
package sourcetest

import (
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A Harness says how to test one kind of source.
type Harness struct {
	// New creates backing data that lists nobody. It is called once per test.
	New func(tb testing.TB) Backend

	// Evidence returns the evidence of another TPM at each call, which List must be able to list.
	// If it is nil, NewEvidence is used.
	Evidence func(tb testing.TB) *sources.Evidence

	// Attributes is true if the verdict has the name and the labels that were passed to List.
	Attributes bool

	// NeedsProof is true if the source answers ErrNeedsChallenge before the challenge, and
	// in full after it.
	NeedsProof bool

	// Boot returns what a TPM of Evidence has proved about its machine's boot: a new value at each
	// call, equal for the same EKHash. It is nil if the source does not use boots. If it is not
	// nil, the source lists a TPM only if all PCRs have these values and, if there is a log, only
	// with that log.
	Boot func(ev *sources.Evidence) *sources.Boot

	// DevID returns the DevID that a TPM of Evidence has proved: a new value at each call, equal
	// for the same EKHash; nil for evidence that is not from Harness.Evidence. The function is nil
	// if the source does not use DevIDs. If it is not nil, the source lists a TPM only by its
	// DevID.
	DevID func(ev *sources.Evidence) *sources.DevID

	// Watches is true if the source is a Watcher that reports changes of its data.
	Watches bool

	// Fetches is true if the source is a Fetcher that must use the network for each TPM of
	// Evidence, listed or not: Check returns ErrNeedsNetwork until it has. Backend.Cut and
	// Backend.Restore are then required. A Fetcher that does not need the network for some TPMs
	// should be tested a second time, without Fetches.
	Fetches bool
}

// A Backend is the backing data of one source under test. Its functions report
// failures through the tb that was passed to New, and are called by one goroutine at a
// time.
//
// If the source is a Loader, the suite calls Load after each change. If Harness.Watches is true,
// Watch must also report each change within 20 seconds.
type Backend struct {
	// Open returns a source over the data, made by the kind's constructor. It may be called several
	// times.
	Open func() sources.Source

	// List adds a TPM to the data, and Unlist removes it again. The attributes are
	// zero unless Harness.Attributes is true.
	List   func(ev *sources.Evidence, a sources.Attributes)
	Unlist func(ev *sources.Evidence)

	// Break makes the data unreadable, so that the source cannot tell or, if it is
	// a Loader, keeps the last good data; Mend undoes that. Both are nil if the
	// data cannot become unreadable.
	Break, Mend func()

	// Cut makes the network fail at once, and Stall makes it never answer, so the source cannot
	// fetch what it has not fetched yet. Restore undoes both, and lets the time pass for which the
	// source remembers failures. All are nil if the source does not use the network; Stall may
	// always be nil.
	Cut, Stall, Restore func()

	// Content returns everything in the backing data, for comparison with reflect.DeepEqual; see
	// Tree. It does not include what the source has fetched. It may be nil.
	Content func() any
}

// Run tests a source.
func Run(t *testing.T, h Harness) {
	t.Helper()
	for _, c := range clauses() {
		t.Run(c.name, func(t *testing.T) { c.test(run{t, h, time.Minute}) })
	}
}

// A run is the test of one clause on one kind of source.
type run struct {
	testing.TB
	h Harness
	// patience is how long the suite waits for something to happen.
	patience time.Duration
}

// A clause is one part of the contract with its test.
type clause struct {
	name string
	test func(tb run)
}

func clauses() []clause {
	return []clause{
		{"opening does nothing", testOpen},
		{"listed and not listed", testAnswers},
		{"attributes", testAttributes},
		{"needs the challenge", testNeedsChallenge},
		{"asked again after the challenge", testAskedAgain},
		{"needs the network", testNeedsNetwork},
		{"Fetch and Check agree", testFetchAgrees},
		{"a network that fails", testNetworkFails},
		{"a network that hangs", testNetworkHangs},
		{"a fetch whose context has ended", testFetchContextEnded},
		{"fetches at once", testFetchesAtOnce},
		{"what is fetched is the caller's", testFetchedIsCallers},
		{"cannot tell", testCannotTell},
		{"not loaded yet", testNotLoaded},
		{"hostile evidence", testHostile},
		{"a hostile boot", testHostileBoot},
		{"a hostile DevID", testHostileDevID},
		{"a context that has ended", testContextEnded},
		{"evidence is the caller's", testEvidenceIsCallers},
		{"the verdict is the caller's", testVerdictIsCallers},
		{"nothing is written", testNothingWritten},
		{"concurrent use", testConcurrent},
		{"Watch ends", testWatchEnds},
		{"Watch tells", testWatchTells},
		{"the schedule", testSchedule},
		{"Status", testStatus},
		{"in a Set", testInSet},
	}
}
