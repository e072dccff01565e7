package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// Nothing that reads, watches or waits is left behind by any test.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// hash returns the EK hash of machine number i.
func hash(i int) string {
	sum := sha256.Sum256([]byte(strconv.Itoa(i)))
	return hex.EncodeToString(sum[:])
}

// text returns a text list of machines.
func text(machines ...int) string {
	var b strings.Builder
	for _, i := range machines {
		b.WriteString(hash(i) + "\n")
	}
	return b.String()
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	must(tb, os.WriteFile(path, []byte(content), 0o600))
}

// replace renames another file over the file at path.
func replace(tb testing.TB, path, content string) {
	tb.Helper()
	write(tb, path+".new", content)
	must(tb, os.Rename(path+".new", path))
}

// listIn writes a list into a new folder and returns its path.
func listIn(tb testing.TB, content string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "list")
	write(tb, path, content)
	return path
}

// A Source lists the machines whose hashes are in the file.
type Source struct {
	*Origin
	tag     string // Load alone uses it
	content atomic.Pointer[string]
	// confirmed is when the content was last seen to be in the file.
	confirmed atomic.Pointer[time.Time]
}

// open is New for a valid configuration. It waits for writers only briefly.
func open(tb testing.TB, cfg Config) *Source {
	tb.Helper()
	o, err := New(cfg)
	must(tb, err)
	o.quiet = time.Millisecond
	return &Source{Origin: o}
}

// Load implements sources.Loader.
func (s *Source) Load(ctx context.Context) error {
	c, err := s.Read(ctx, s.tag)
	if err != nil {
		return err
	}
	s.tag = c.Tag
	s.confirmed.Store(&c.At)
	if c.Data != nil {
		content := string(c.Data)
		s.content.Store(&content)
	}
	return nil
}

// Schedule implements sources.Loader.
func (s *Source) Schedule() sources.Schedule { return sources.Schedule{Every: s.cfg.Every} }

// Status implements sources.Reporter.
func (s *Source) Status() sources.Status { return sources.Status{Warnings: s.Warnings()} }

// Check implements sources.Source.
func (s *Source) Check(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	content := s.content.Load()
	if content == nil {
		return sources.Verdict{}, errors.New("not loaded")
	}
	return sources.Verdict{Listed: strings.Contains(*content, fmt.Sprint(ev.EKHash))}, nil
}

// loaded is open and a first Load, which succeeds.
func loaded(tb testing.TB, cfg Config) *Source {
	tb.Helper()
	s := open(tb, cfg)
	must(tb, s.Load(tb.Context()))
	return s
}

// lists returns "listed", "not listed" or "cannot tell".
func (s *Source) lists(machine int) string {
	content := s.content.Load()
	switch {
	case content == nil:
		return "cannot tell"
	case strings.Contains(*content, hash(machine)):
		return "listed"
	}
	return "not listed"
}

// want fails the test unless the source answers so about a machine.
func want(tb testing.TB, s *Source, machine int, answer string) {
	tb.Helper()
	if got := s.lists(machine); got != answer {
		tb.Errorf("machine %d: %s, want %s", machine, got, answer)
	}
}

// refused fails the test unless a Load fails, and says so.
func refused(tb testing.TB, s *Source, says string) {
	tb.Helper()
	err := s.Load(tb.Context())
	if err == nil || !strings.Contains(err.Error(), says) {
		tb.Errorf("Load: %v, want an error that says %q", err, says)
	}
}

// A run is a Source in a Set.
type run struct {
	*Source
	refreshed chan error // a receiver gets the outcome of each load
	stop      func()
}

// Load implements sources.Loader. It waits for a receiver.
func (r *run) Load(ctx context.Context) error {
	err := r.Source.Load(ctx)
	select {
	case r.refreshed <- err:
	case <-ctx.Done():
	}
	return err
}

// start runs a source in a Set until the test ends.
func start(tb testing.TB, s *Source) *run {
	tb.Helper()
	r := &run{Source: s, refreshed: make(chan error)}
	starting, cancel := context.WithCancel(context.Background())
	cancel() // the first load waits for a receiver
	set := newSet(tb, r)
	set.Start(starting, nil)
	r.stop = set.Close
	tb.Cleanup(r.stop)
	return r
}

func newSet(tb testing.TB, s sources.Source) *admission.Set {
	tb.Helper()
	member := admission.Member{Name: "lab", Kind: "hash_file", Source: s}
	set, err := admission.NewSet([]admission.Member{member}, policy.AnyOf("lab"), admission.Options{})
	must(tb, err)
	return set
}

// inSet starts a Set of one source.
func inSet(tb testing.TB, s sources.Source) *admission.Set {
	tb.Helper()
	set := newSet(tb, s)
	set.Start(tb.Context(), nil)
	return set
}

// patience is the longest time that an asynchronous effect may take.
const patience = time.Minute

// until waits until the source answers so about a machine.
func (r *run) until(tb testing.TB, machine int, answer string) {
	tb.Helper()
	late := time.After(patience)
	var last error
	for r.lists(machine) != answer {
		select {
		case last = <-r.refreshed:
		case <-late:
			tb.Fatalf("machine %d: %s after %v, want %s; the last refresh said %v",
				machine, r.lists(machine), patience, answer, last)
		}
	}
}

// turn waits until a refresh has ended, and returns its error.
func (r *run) turn(tb testing.TB) error {
	tb.Helper()
	select {
	case err := <-r.refreshed:
		return err
	case <-time.After(patience):
		tb.Fatalf("no refresh within %v", patience)
		return nil
	}
}

// watched waits until the source has no warnings: if a folder was away when the way to the file was
// looked at, there is one until the next look.
func (r *run) watched(tb testing.TB) {
	tb.Helper()
	for begun := time.Now(); len(r.Warnings()) > 0; runtime.Gosched() {
		if time.Since(begun) > patience {
			tb.Fatalf("warnings %q after %v", r.Warnings(), patience)
		}
	}
}
