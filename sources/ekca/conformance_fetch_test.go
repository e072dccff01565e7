package ekca_test

import (
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// network is one that can fail. It is between a site's pages and who asks for
// them.
type network struct {
	mu      sync.Mutex
	failing bool
	stalled chan struct{} // nil while it works
}

// through serves page while the network works.
func (n *network) through(page http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		failing, stalled := n.failing, n.stalled
		n.mu.Unlock()
		if failing {
			panic(http.ErrAbortHandler) // the connection ends
		}
		if stalled != nil {
			select {
			case <-stalled:
			case <-r.Context().Done():
				return
			}
		}
		page(w, r)
	}
}

func (n *network) set(failing, stalling bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failing = failing
	if n.stalled != nil {
		close(n.stalled)
		n.stalled = nil
	}
	if stalling {
		n.stalled = make(chan struct{})
	}
}

// The contract of a source that fetches. Here each TPM has a CA of its own that is
// only at the URL its EK certificate names, below a root that is listed by putting
// it into the folder.
func TestConformanceFetching(t *testing.T) {
	web := newSite(t)
	var net network
	roots := make(map[sources.EKHash]*authority) // by EK hash
	sourcetest.Run(t, sourcetest.Harness{
		Fetches: true,
		Evidence: func(tb testing.TB) *sources.Evidence {
			tb.Helper()
			ev := sourcetest.NewEvidence(tb)
			root := newRoot(tb, "CA "+ev.EKHash.String())
			low := root.sub(tb, "Low")
			url := web.handle("/"+ev.EKHash.String(), net.through(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(low.cert.Raw)
			}))
			ev.Certificate = certstest.Sign(tb, ekTemplate(tb, issuersAt(url)), low.cert, ev.EK, low.key).Raw
			roots[ev.EKHash] = root
			return ev
		},
		New: func(tb testing.TB) sourcetest.Backend {
			tb.Helper()
			dir := mkdir(tb, filepath.Join(tb.TempDir(), "cas"))
			certstest.Write(tb, filepath.Join(dir, "always.pem"), certstest.PEM(newRoot(tb, "Always").cert))
			file := func(ev *sources.Evidence) string { return filepath.Join(dir, ev.EKHash.String()+".pem") }
			must := func(err error) {
				if err != nil {
					tb.Error(err)
				}
			}
			now, cache := newClock(), filepath.Join(tb.TempDir(), "cache.db")
			return sourcetest.Backend{
				Open: func() sources.Source {
					return newSource(tb, ekca.Config{
						Config: truststore.Config{
							Bundles:      map[string]string{"all": dir},
							PollInterval: 5 * time.Millisecond,
							AIAHosts:     []string{web.host()},
							CachePath:    cache,
							Now:          now.read,
						},
					})
				},
				List: func(ev *sources.Evidence, _ sources.Attributes) {
					tmp := certstest.Write(tb, filepath.Join(dir, ".new"), certstest.PEM(roots[ev.EKHash].cert))
					must(os.Rename(tmp, file(ev)))
				},
				Unlist: func(ev *sources.Evidence) { must(os.Remove(file(ev))) },
				Break:  func() { must(os.Rename(dir, dir+".away")) },
				Mend:   func() { must(os.Rename(dir+".away", dir)) },
				Cut:    func() { net.set(true, false) },
				Stall:  func() { net.set(false, true) },
				Restore: func() {
					net.set(false, false)
					now.pass(time.Hour)
				},
				Content: func() any { return sourcetest.Tree(dir) },
			}
		},
	})
}
