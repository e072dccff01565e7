package devid_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

var (
	_ sources.Loader   = (*devid.Source)(nil)
	_ sources.Watcher  = (*devid.Source)(nil)
	_ sources.Fetcher  = (*devid.Source)(nil)
	_ sources.Reporter = (*devid.Source)(nil)
)

// Nothing that reads files or asks web servers is left behind by any test.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fleet has machines with a DevID each, by a CA of its own.
type fleet struct {
	mu   sync.Mutex
	cas  map[sources.EKHash]*authority
	leaf map[sources.EKHash]*x509.Certificate
}

func newFleet() *fleet {
	return &fleet{cas: make(map[sources.EKHash]*authority), leaf: make(map[sources.EKHash]*x509.Certificate)}
}

// add adds a machine.
func (f *fleet) add(ev *sources.Evidence, ca *authority, leaf *x509.Certificate) *sources.Evidence {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cas[ev.EKHash], f.leaf[ev.EKHash] = ca, leaf
	return ev
}

// devID returns what a machine has proved, or nil if it is not of the fleet.
func (f *fleet) devID(ev *sources.Evidence) *sources.DevID {
	f.mu.Lock()
	defer f.mu.Unlock()
	leaf := f.leaf[ev.EKHash]
	if leaf == nil {
		return nil
	}
	return &sources.DevID{Chain: [][]byte{leaf.Raw}, Key: leaf.PublicKey}
}

// backend lists a machine by putting its CA's certificate into a folder.
func (f *fleet) backend(tb testing.TB, cfg devid.Config) sourcetest.Backend {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "cas")
	must := func(err error) {
		if err != nil {
			tb.Error(err)
		}
	}
	must(os.Mkdir(dir, 0o700))
	certstest.Write(tb, filepath.Join(dir, "always.pem"), certstest.PEM(newRoot(tb, "Always").cert))
	file := func(ev *sources.Evidence) string { return filepath.Join(dir, ev.EKHash.String()+".pem") }
	cfg.Bundles, cfg.PollInterval = map[string]string{"all": dir}, 5*time.Millisecond
	return sourcetest.Backend{
		Open: func() sources.Source { return newSource(tb, cfg) },
		List: func(ev *sources.Evidence, _ sources.Attributes) {
			tmp := certstest.Write(tb, filepath.Join(dir, ".new"), certstest.PEM(certsOf(f.cas[ev.EKHash])...))
			must(os.Rename(tmp, file(ev)))
		},
		Unlist:  func(ev *sources.Evidence) { must(os.Remove(file(ev))) },
		Break:   func() { must(os.Rename(dir, dir+".away")) },
		Mend:    func() { must(os.Rename(dir+".away", dir)) },
		Content: func() any { return sourcetest.Tree(dir) },
	}
}

// The contract of every source.
func TestConformance(t *testing.T) {
	f := newFleet()
	sourcetest.Run(t, sourcetest.Harness{
		NeedsProof: true, DevID: f.devID,
		Evidence: func(tb testing.TB) *sources.Evidence {
			tb.Helper()
			ca := newRoot(tb, "CA")
			return f.add(sourcetest.NewEvidence(tb), ca, ca.devID(tb, certstest.NewKey(tb).Public()))
		},
		New: func(tb testing.TB) sourcetest.Backend {
			tb.Helper()
			return f.backend(tb, devid.Config{})
		},
	})
}

// The contract of a source that fetches. The CA of each DevID is only at the URL that the
// DevID's certificate names, below a root that is listed by putting it into the folder.
func TestConformanceFetching(t *testing.T) {
	f, web := newFleet(), newSite(t)
	sourcetest.Run(t, sourcetest.Harness{
		NeedsProof: true, DevID: f.devID, Fetches: true,
		Evidence: func(tb testing.TB) *sources.Evidence {
			tb.Helper()
			ev := sourcetest.NewEvidence(tb)
			root := newRoot(tb, "CA "+ev.EKHash.String())
			low := root.sub(tb, "Low")
			url := web.put("/"+ev.EKHash.String(), low.cert.Raw)
			return f.add(ev, root, low.devID(tb, certstest.NewKey(tb).Public(),
				func(c *x509.Certificate) { c.IssuingCertificateURL = []string{url} }))
		},
		New: func(tb testing.TB) sourcetest.Backend {
			tb.Helper()
			b := f.backend(tb, devid.Config{
				AIAHosts: []string{web.host()}, CachePath: filepath.Join(tb.TempDir(), "cache.db"), Now: web.clock,
			})
			b.Cut, b.Stall = func() { web.set(true, false) }, func() { web.set(false, true) }
			b.Restore = func() {
				web.set(false, false)
				web.pass(time.Hour)
			}
			return b
		},
	})
}
