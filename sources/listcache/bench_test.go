package listcache_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

const million = 1_000_000

// randomHashes returns sorted hashes.
func randomHashes(n int) []eklist.Hash {
	random := rand.NewChaCha8([32]byte{9})
	hashes := make([]eklist.Hash, n)
	for i := range hashes {
		random.Read(hashes[i][:])
	}
	slices.SortFunc(hashes, func(a, b eklist.Hash) int { return bytes.Compare(a[:], b[:]) })
	return hashes
}

func snapshotOf(b *testing.B, hashes []eklist.Hash) *eklist.Snapshot {
	b.Helper()
	builder := eklist.NewBuilder(eklist.Header{}, len(hashes))
	for _, h := range hashes {
		if err := builder.Add(h, nil); err != nil {
			b.Fatal(err)
		}
	}
	s, err := builder.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// writeSorted writes a key an entry in one transaction, into a fresh bucket.
func writeSorted(b *testing.B, path string, hashes []eklist.Hash) {
	b.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	name := []byte("list")
	if err := db.Update(func(tx *bbolt.Tx) error {
		if tx.Bucket(name) != nil {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
		}
		bucket, err := tx.CreateBucket(name)
		if err != nil {
			return err
		}
		bucket.FillPercent = 1
		for i := range hashes {
			if err := bucket.Put(hashes[i][:], nil); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

// turns takes turns between what is measured and what that is measured against,
// and reports how many times as long the first takes.
func turns(b *testing.B, measured, baseline func(i int)) {
	b.Helper()
	var ratios []float64
	for i := 0; b.Loop(); i++ {
		begin := time.Now()
		measured(i)
		took := time.Since(begin)
		b.StopTimer()
		begin = time.Now()
		baseline(i)
		ratios = append(ratios, float64(took)/float64(time.Since(begin)))
		b.StartTimer()
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}

// BenchmarkFirstWrite is the first Save of a million entries, against one sorted
// bbolt transaction of them.
func BenchmarkFirstWrite(b *testing.B) {
	hashes := randomHashes(million)
	list := snapshotOf(b, hashes)
	dir := b.TempDir()
	turns(b, func(i int) {
		path := filepath.Join(dir, fmt.Sprint("cache", i))
		mustSave(b, listcache.New(path, url), nil, list, meta(i))
	}, func(i int) {
		writeSorted(b, filepath.Join(dir, fmt.Sprint("base", i)), hashes)
	})
}

// BenchmarkThousandChanges is a Save of a list of which 500 entries of a million
// were removed and 500 added, against the bucket dropped and written in one
// sorted transaction.
func BenchmarkThousandChanges(b *testing.B) {
	hashes := randomHashes(million + 1000)
	random := rand.New(rand.NewPCG(7, 8))
	drop := make(map[int]int) // index, and from which list
	for len(drop) < 1000 {
		drop[random.IntN(len(hashes))] = len(drop) % 2
	}
	var sorted [2][]eklist.Hash
	var lists [2]*eklist.Snapshot
	for l := range lists {
		for i, h := range hashes {
			if from, ok := drop[i]; !ok || from != l {
				sorted[l] = append(sorted[l], h)
			}
		}
		lists[l] = snapshotOf(b, sorted[l])
	}
	dir := b.TempDir()
	base := filepath.Join(dir, "base")
	writeSorted(b, base, sorted[0])
	c := listcache.New(filepath.Join(dir, "cache"), url)
	mustSave(b, c, nil, lists[0], meta(0))
	turns(b, func(i int) {
		mustSave(b, c, lists[i%2], lists[(i+1)%2], meta(i))
	}, func(i int) {
		writeSorted(b, base, sorted[(i+1)%2])
	})
}

// BenchmarkTouch is what a 304 costs where a million entries are cached.
func BenchmarkTouch(b *testing.B) {
	list := snapshotOf(b, randomHashes(million))
	c, _ := newCache(b)
	mustSave(b, c, nil, list, meta(0))
	for b.Loop() {
		if err := c.Touch(b.Context(), list, meta(1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoad is how long a restart takes to serve a million entries, without
// and with some hundred thousand changes beside them.
func BenchmarkLoad(b *testing.B) {
	hashes := randomHashes(million)
	for name, begin := range map[string]int{"changes=0": 0, "changes=100k": 100_000} {
		b.Run(name, func(b *testing.B) {
			c, _ := newCache(b)
			list := snapshotOf(b, hashes)
			mustSave(b, c, nil, list, meta(0))
			mustSave(b, c, list, snapshotOf(b, hashes[begin:]), meta(1))
			for b.Loop() {
				if _, _, err := c.Load(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
