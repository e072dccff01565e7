package ekca_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// Nothing that reads files is left behind by any test.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The contract of every source. Here each TPM has a CA of its own, and listing
// it is putting that CA's certificate into the folder.
func TestConformance(t *testing.T) {
	cas := make(map[*sources.Evidence]*authority)
	harness := sourcetest.Harness{
		Evidence: func(tb testing.TB) *sources.Evidence {
			tb.Helper()
			ca := newRoot(tb, "CA")
			ev := sourcetest.NewEvidence(tb)
			ev.Certificate = certstest.Sign(tb, ekTemplate(tb), ca.cert, ev.EK, ca.key).Raw
			cas[ev] = ca
			return ev
		},
		New: func(tb testing.TB) sourcetest.Backend {
			tb.Helper()
			dir := filepath.Join(tb.TempDir(), "cas")
			if err := os.Mkdir(dir, 0o700); err != nil {
				tb.Fatal(err)
			}
			certstest.Write(tb, filepath.Join(dir, "always.pem"), certstest.PEM(newRoot(tb, "Always").cert))
			file := func(ev *sources.Evidence) string { return filepath.Join(dir, ev.EKHash.String()+".pem") }
			must := func(err error) {
				if err != nil {
					tb.Error(err)
				}
			}
			return sourcetest.Backend{
				Open: func() sources.Source {
					return newSource(tb, ekca.Config{
						Config: truststore.Config{
							Bundles:      map[string]string{"all": dir},
							PollInterval: 5 * time.Millisecond,
						},
					})
				},
				List: func(ev *sources.Evidence, _ sources.Attributes) {
					tmp := certstest.Write(tb, filepath.Join(dir, ".new"), certstest.PEM(cas[ev].cert))
					must(os.Rename(tmp, file(ev)))
				},
				Unlist:  func(ev *sources.Evidence) { must(os.Remove(file(ev))) },
				Break:   func() { must(os.Rename(dir, dir+".away")) },
				Mend:    func() { must(os.Rename(dir+".away", dir)) },
				Content: func() any { return sourcetest.Tree(dir) },
			}
		},
	}
	sourcetest.Run(t, harness)
}
