package hashdir_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// A swapped directory is replaced as a whole by a link, generation by generation. Each
// generation lists the same TPM.
type swapped struct {
	// path is the source's path, at or below base.
	base, path string
	// fill makes a generation in the empty directory dir.
	fill func(dir string)
	// name is the name of the link to the generation.
	name string
	// marker is the source's marker.
	marker string
}

// TestSwap stops a directory that is being replaced from refusing, or from clearing under a
// deny rule, a TPM that it lists all the time: each check sees a whole generation, and never a
// generation that is being removed.
func TestSwap(t *testing.T) {
	ev, stranger := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
	touch := func(path string) {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, nil, 0o644))
	}
	for _, test := range []struct {
		name string
		make func(base string) swapped
	}{
		{"flat", func(base string) swapped {
			return swapped{
				path: filepath.Join(base, "current"), name: "current",
				fill: func(dir string) { touch(filepath.Join(dir, ev.EKHash.String())) },
			}
		}},
		{"sharded", func(base string) swapped {
			return swapped{
				path: filepath.Join(base, "current"), name: "current",
				fill: func(dir string) { touch(filepath.Join(dir, ev.EKHash.String()[:2], ev.EKHash.String())) },
			}
		}},
		{"marked", func(base string) swapped {
			return swapped{
				path: filepath.Join(base, "current"), name: "current", marker: "marker",
				fill: func(dir string) {
					touch(filepath.Join(dir, "marker"))
					touch(filepath.Join(dir, ev.EKHash.String()))
				},
			}
		}},
		{"ConfigMap", func(base string) swapped {
			must(t, os.Symlink(filepath.Join("..data", ev.EKHash.String()), filepath.Join(base, ev.EKHash.String())))
			return swapped{
				path: base, name: "..data",
				fill: func(dir string) { touch(filepath.Join(dir, ev.EKHash.String())) },
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			base := t.TempDir()
			s := test.make(base)
			s.base = base
			s.next(t, 0)
			s.checkWhileSwapping(t, ev, stranger)
		})
	}
}

// next makes generation i, points the link to it, and removes the generation before.
func (s *swapped) next(t testing.TB, i int) {
	dir := "..generation" + strconv.Itoa(i)
	must(t, os.Mkdir(filepath.Join(s.base, dir), 0o755))
	s.fill(filepath.Join(s.base, dir))
	old, _ := os.Readlink(filepath.Join(s.base, s.name))
	must(t, os.Symlink(dir, filepath.Join(s.base, "..new")))
	must(t, os.Rename(filepath.Join(s.base, "..new"), filepath.Join(s.base, s.name)))
	if old != "" {
		must(t, os.RemoveAll(filepath.Join(s.base, old)))
	}
}

func (s *swapped) checkWhileSwapping(t *testing.T, listed, stranger *sources.Evidence) {
	source, err := hashdir.New(hashdir.Config{Path: s.path, Marker: s.marker})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				if v, err := source.Check(t.Context(), listed); err != nil || !v.Listed {
					t.Errorf("while the directory is swapped: a listed TPM is listed %v, %v", v.Listed, err)
				}
				if v, err := source.Check(t.Context(), stranger); err != nil || v.Listed {
					t.Errorf("while the directory is swapped: a stranger is listed %v, %v", v.Listed, err)
				}
			}
		})
	}
	for i := 1; i < 100 && !t.Failed(); i++ {
		s.next(t, i)
	}
	cancel()
	wg.Wait()
}
