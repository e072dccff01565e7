package eklist_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// BenchmarkLookupDuringReload takes turns between look-ups while nothing else runs
// and while a list of a million is parsed again and again, and reports how many
// times the 99.9th percentile of the latter is.
func BenchmarkLookupDuringReload(b *testing.B) {
	hashes := randomHashes(1, million)
	list := textList(hashes)
	s, err := eklist.Parse(bytes.NewReader(list), eklist.Options{Size: int64(len(list))})
	if err != nil {
		b.Fatal(err)
	}
	const samples = 200_000
	measure := func() time.Duration {
		took := make([]time.Duration, samples)
		for i := range took {
			begun := time.Now()
			if _, ok := s.Lookup(hashes[i*7919%million]); !ok {
				b.Fatal("a miss")
			}
			took[i] = time.Since(begun)
		}
		slices.Sort(took)
		return took[samples*999/1000]
	}
	var ratios []float64
	for b.Loop() {
		alone := measure()
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := eklist.Parse(bytes.NewReader(list), eklist.Options{Size: int64(len(list))}); err != nil {
					b.Error(err)
					return
				}
			}
		}()
		during := measure()
		close(stop)
		<-done
		ratios = append(ratios, float64(during)/float64(alone))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}
