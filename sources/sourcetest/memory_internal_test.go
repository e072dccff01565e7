package sourcetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// data is the backing data of the sources in this package's tests.
type data struct {
	mu      sync.Mutex
	entries map[sources.EKHash]sources.Attributes
	broken  bool
	writes  int
}

var errUnreadable = errors.New("the data is unreadable")

func (d *data) read() (map[sources.EKHash]sources.Attributes, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken {
		return nil, errUnreadable
	}
	return maps.Clone(d.entries), nil
}

func (d *data) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// backend returns a Backend over d whose sources open makes.
func (d *data) backend(open func() sources.Source) Backend {
	return Backend{
		Open: open,
		List: func(ev *sources.Evidence, a sources.Attributes) {
			d.change(func() { d.entries[ev.EKHash] = a })
		},
		Unlist: func(ev *sources.Evidence) { d.change(func() { delete(d.entries, ev.EKHash) }) },
		Break:  func() { d.change(func() { d.broken = true }) },
		Mend:   func() { d.change(func() { d.broken = false }) },
		Content: func() any {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.writes
		},
	}
}

// verdict is a correct source's verdict about entries.
func verdict(entries map[sources.EKHash]sources.Attributes, ev *sources.Evidence) sources.Verdict {
	a, ok := entries[ev.EKHash]
	if !ok {
		return sources.Verdict{Reason: "no entry"}
	}
	a.Labels = slices.Clone(a.Labels)
	return sources.Verdict{Listed: true, Attributes: a}
}

// lookup is a correct source that reads its data at each Check.
type lookup struct{ data *data }

func (l lookup) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, err
	}
	entries, err := l.data.read()
	if err != nil {
		return sources.Verdict{}, err
	}
	return verdict(entries, ev), nil
}

// loader is a correct source that loads and follows its data.
type loader struct {
	data  *data
	state atomic.Pointer[loaded]
}

type loaded struct {
	entries map[sources.EKHash]sources.Attributes
	at      time.Time
}

func (l *loader) Check(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	st := l.state.Load()
	if st == nil {
		return sources.Verdict{}, errors.New("not loaded yet")
	}
	return verdict(st.entries, ev), nil
}

func (l *loader) Load(context.Context) error {
	entries, err := l.data.read()
	if err != nil {
		return err
	}
	l.state.Store(&loaded{entries, time.Now()})
	return nil
}

func (l *loader) Schedule() sources.Schedule { return sources.Schedule{Every: time.Millisecond} }

func (l *loader) Watch(ctx context.Context, changed func()) error {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			changed()
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *loader) Status() sources.Status {
	st := l.state.Load()
	if st == nil {
		return sources.Status{}
	}
	return sources.Status{Loaded: st.at, Entries: len(st.entries), Warnings: []string{"line 3: left out"}}
}

// needsProof is a correct source that needs the proof.
type needsProof struct{ lookup }

func (n needsProof) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if ev.Proof == nil {
		return sources.Verdict{}, sources.ErrNeedsChallenge
	}
	return n.lookup.Check(ctx, ev)
}

// byBoot is a correct source that lists a TPM by its boot, too.
type byBoot struct {
	lookup
	meets func(got, want *sources.Boot) bool
}

func (b byBoot) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	v, err := needsProof{b.lookup}.Check(ctx, ev)
	if err == nil && !b.meets(ev.Proof.Boot, bootOf(ev)) {
		v = sources.Verdict{}
	}
	return v, err
}

// bootOf returns the boot of a TPM.
func bootOf(ev *sources.Evidence) *sources.Boot {
	second := sha256.Sum256(ev.EKHash[:])
	return &sources.Boot{
		Bank: "sha256", PCRs: map[int][]byte{0: bytes.Clone(ev.EKHash[:]), 7: second[:]},
		Log: &sources.BootLog{Replays: map[int]bool{7: true}, SecureBoot: "enabled"},
	}
}

// meets is what a byBoot has to ask for.
func meets(got, want *sources.Boot) bool { return reflect.DeepEqual(got, want) }

func byBootHarness(meets func(got, want *sources.Boot) bool) Harness {
	h := harness(func(d *data) sources.Source { return byBoot{lookup{d}, meets} })
	h.NeedsProof, h.Boot = true, bootOf
	return h
}

// byDevID is a correct source that lists a TPM by its DevID.
type byDevID struct {
	lookup
	same func(got, want *sources.DevID) bool
}

func (b byDevID) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if ev.Proof == nil {
		return sources.Verdict{}, sources.ErrNeedsChallenge
	}
	entries, err := b.data.read()
	if err != nil {
		return sources.Verdict{}, err
	}
	for hash, a := range entries {
		if b.same(ev.Proof.DevID, devIDOf(&sources.Evidence{EKHash: hash})) {
			return sources.Verdict{Listed: true, Attributes: a.Clone()}, nil
		}
	}
	return sources.Verdict{}, nil
}

// devIDKeys are the keys of the DevIDs that certify has made, by the TPM's EK hash.
var devIDKeys sync.Map //nolint:gochecknoglobals // a function of the harness has no other place for them

// certify returns the evidence of a TPM with a DevID.
func certify(tb testing.TB) *sources.Evidence {
	tb.Helper()
	ev := NewEvidence(tb)
	devIDKeys.Store(ev.EKHash, NewEvidence(tb).EK)
	return ev
}

// devIDOf returns the DevID of a TPM. Its certificate is a hash, which nobody parses here.
func devIDOf(ev *sources.Evidence) *sources.DevID {
	key, ok := devIDKeys.Load(ev.EKHash)
	if !ok {
		return nil
	}
	leaf := sha256.Sum256(ev.EKHash[:])
	return &sources.DevID{Chain: [][]byte{leaf[:]}, Key: key}
}

// sameDevID is what a byDevID has to ask for.
func sameDevID(got, want *sources.DevID) bool {
	return got != nil && len(got.Chain) > 0 && bytes.Equal(got.Chain[0], want.Chain[0]) &&
		reflect.DeepEqual(got.Key, want.Key)
}

func byDevIDHarness(same func(got, want *sources.DevID) bool) Harness {
	h := harness(func(d *data) sources.Source { return byDevID{lookup{d}, same} })
	h.NeedsProof, h.DevID, h.Evidence = true, devIDOf, certify
	return h
}

// harness returns the Harness of sources that open makes.
func harness(open func(*data) sources.Source) Harness {
	return Harness{
		Attributes: true,
		New: func(testing.TB) Backend {
			d := &data{entries: map[sources.EKHash]sources.Attributes{}}
			return d.backend(func() sources.Source { return open(d) })
		},
	}
}

func lookupHarness() Harness {
	return harness(func(d *data) sources.Source { return lookup{d} })
}

func loaderHarness() Harness {
	h := harness(func(d *data) sources.Source { return &loader{data: d} })
	h.Watches = true
	return h
}

func needsProofHarness() Harness {
	h := harness(func(d *data) sources.Source { return needsProof{lookup{d}} })
	h.NeedsProof = true
	return h
}

// TestCorrectSourcesPass stops the suite from failing a source that keeps the contract: a
// source that looks TPMs up, that loads, that needs the proof, or that has as few features as
// possible.
func TestCorrectSourcesPass(t *testing.T) {
	t.Run("lookup", func(t *testing.T) { Run(t, lookupHarness()) })
	t.Run("loader", func(t *testing.T) { Run(t, loaderHarness()) })
	t.Run("needs proof", func(t *testing.T) { Run(t, needsProofHarness()) })
	t.Run("by boot", func(t *testing.T) { Run(t, byBootHarness(meets)) })
	t.Run("by DevID", func(t *testing.T) { Run(t, byDevIDHarness(sameDevID)) })
	t.Run("least", func(t *testing.T) {
		h := lookupHarness()
		h.Attributes = false
		full := h.New
		h.New = func(tb testing.TB) Backend {
			tb.Helper()
			b := full(tb)
			b.Break, b.Mend, b.Content = nil, nil, nil
			return b
		}
		Run(t, h)
	})
}
