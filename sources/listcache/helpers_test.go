package listcache_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

const url, listID = "https://allowlist.example.org/tpm.json", "fleet"

const maxBytes = eklist.DefaultMaxBytes

var confirmed = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)

// meta is unlike any other meta.
func meta(n int) listcache.Meta {
	return listcache.Meta{
		ETag: fmt.Sprintf("\"tag \xfe %d\"", n), LastModified: fmt.Sprintf("modified %d", n),
		Confirmed: confirmed.Add(time.Duration(n) * time.Minute),
	}
}

// newCache returns a Cache in a folder of its own, and its path.
func newCache(t testing.TB) (*listcache.Cache, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tpm.db")
	return listcache.New(path, maxBytes, url, listID), path
}

// hashOf returns a hash that looks like one.
func hashOf(n uint64) (h sources.EKHash) {
	random := rand.New(rand.NewPCG(n, 1))
	for at := 0; at < len(h); at += 8 {
		binary.BigEndian.PutUint64(h[at:], random.Uint64())
	}
	return h
}

// named returns a record.
func named(name string, labels ...string) eklist.Record {
	r := append([]byte{byte(len(name))}, name...)
	for _, l := range labels {
		r = append(append(r, byte(len(l))), l...)
	}
	return r
}

// listOf returns a list whose entries are made by a function, for each number
// from begin to end.
func listOf(t testing.TB, header eklist.Header, begin, end uint64, record func(n uint64) eklist.Record) *eklist.Snapshot {
	t.Helper()
	b := eklist.NewBuilder(header, int(end-begin))
	for n := begin; n < end; n++ {
		var r eklist.Record
		if record != nil {
			r = record(n)
		}
		if err := b.Add(hashOf(n), r); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func serial(n uint64) eklist.Header { return eklist.Header{Serial: n, HasSerial: true} }

func plain(t testing.TB, begin, end uint64) *eklist.Snapshot {
	t.Helper()
	return listOf(t, eklist.Header{}, begin, end, nil)
}

func mustSave(t testing.TB, c *listcache.Cache, next *eklist.Snapshot, m listcache.Meta) {
	t.Helper()
	if err := c.Save(t.Context(), next, m); err != nil {
		t.Fatal(err)
	}
}

// wantLoad fails unless the Cache holds a list and its meta, as another process
// would find them.
func wantLoad(t testing.TB, path string, want *eklist.Snapshot, m listcache.Meta) {
	t.Helper()
	got, gotMeta, err := listcache.New(path, maxBytes, url, listID).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !got.SameEntries(want) {
		t.Errorf("%d entries, not the %d that were saved", got.Len(), want.Len())
	}
	h, w := got.Header(), want.Header()
	if h.Serial != w.Serial || h.HasSerial != w.HasSerial || !h.Expires.Equal(w.Expires) || h.Name != w.Name {
		t.Errorf("header %+v, want %+v", h, w)
	}
	if gotMeta.ETag != m.ETag || gotMeta.LastModified != m.LastModified || !gotMeta.Confirmed.Equal(m.Confirmed) ||
		gotMeta.Key != m.Key {
		t.Errorf("meta %+v, want %+v", gotMeta, m)
	}
}

// wantNoDraft fails where something lies beside the cache.
func wantNoDraft(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path + ".new"); !os.IsNotExist(err) {
		t.Errorf("beside the cache: %v", err)
	}
}
