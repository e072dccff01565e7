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

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

const million = 1_000_000

// randomHashes returns sorted hashes.
func randomHashes(n int) []sources.EKHash {
	random := rand.NewChaCha8([32]byte{9})
	hashes := make([]sources.EKHash, n)
	for i := range hashes {
		random.Read(hashes[i][:])
	}
	slices.SortFunc(hashes, func(a, b sources.EKHash) int { return bytes.Compare(a[:], b[:]) })
	return hashes
}

func snapshotOf(b *testing.B, hashes []sources.EKHash) *eklist.Snapshot {
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
func writeSorted(b *testing.B, path string, hashes []sources.EKHash) {
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
		mustSave(b, listcache.New(path, maxBytes, url), list, meta(i))
	}, func(i int) {
		writeSorted(b, filepath.Join(dir, fmt.Sprint("base", i)), hashes)
	})
}

// BenchmarkLoad is how long a restart takes to serve a million entries.
func BenchmarkLoad(b *testing.B) {
	c, _ := newCache(b)
	mustSave(b, c, snapshotOf(b, randomHashes(million)), meta(0))
	for b.Loop() {
		if _, _, err := c.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
