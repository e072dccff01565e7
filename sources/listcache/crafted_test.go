package listcache_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

const stateBucket, entriesBucket = "tpm list state", "tpm list entries"

// craft changes what a file holds and gives it a checksum that is right.
func craft(t testing.TB, path string, change func(tx *bbolt.Tx) error) {
	t.Helper()
	f := boltfile.File{Path: path, Limit: 1 << 30, Format: "tpm list 2", Bucket: stateBucket}
	if err := f.Write(t.Context(), nil, func(db *bbolt.DB) error {
		return db.Update(func(to *bbolt.Tx) error {
			if err := f.Read(t.Context(), func(from *bbolt.Tx) error { return copyBuckets(from, to) }); err != nil {
				return err
			}
			return change(to)
		})
	}); err != nil {
		t.Fatal(err)
	}
}

func copyBuckets(from, to *bbolt.Tx) error {
	return from.ForEach(func(name []byte, b *bbolt.Bucket) error {
		into, err := to.CreateBucketIfNotExists(name)
		if err != nil {
			return err
		}
		return b.ForEach(func(key, value []byte) error { return into.Put(bytes.Clone(key), bytes.Clone(value)) })
	})
}

// A file with a checksum that is right may still hold no list, if the user of this
// process has written it: it counts as none, or as the list that it says, and nothing
// stops the process or stands in the way of the next list.
func TestCrafted(t *testing.T) {
	put := func(bucket, key string, change func(value []byte) []byte) func(tx *bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(bucket))
			return b.Put([]byte(key), change(bytes.Clone(b.Get([]byte(key)))))
		}
	}
	replace := func(from, to string) func([]byte) []byte {
		return func(v []byte) []byte { return bytes.Replace(v, []byte(from), []byte(to), 1) }
	}
	const state, entries = stateBucket, entriesBucket
	first := string(make([]byte, 8))
	for name, test := range map[string]struct {
		change func(tx *bbolt.Tx) error
		want   string
	}{
		"no state":   {func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(state)) }, "no bucket"},
		"no entries": {func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(entries)) }, "room for"},
		"nothing": {func(tx *bbolt.Tx) error {
			return errors.Join(tx.DeleteBucket([]byte(state)), tx.DeleteBucket([]byte(entries)))
		}, "no bucket"},
		"an empty state":        {func(tx *bbolt.Tx) error { return tx.Bucket([]byte(state)).Delete([]byte("state")) }, "does not say"},
		"a state cut off":       {put(state, "state", func(v []byte) []byte { return v[:20] }), "does not say"},
		"more entries":          {put(state, "state", replace(`"entries":3003`, `"entries":3004`)), "not 3004"},
		"many entries":          {put(state, "state", replace(`"entries":3003`, `"entries":1000000000000`)), "room for"},
		"a number below zero":   {put(state, "state", replace(`"entries":3003`, `"entries":-1`)), "room for"},
		"a value less":          {func(tx *bbolt.Tx) error { return tx.Bucket([]byte(entries)).Delete([]byte(first)) }, "not 3003"},
		"a value cut off":       {put(entries, first, func(v []byte) []byte { return v[:len(v)-1] }), "cut off"},
		"an entry cut off":      {put(entries, first, func(v []byte) []byte { return v[:20] }), "cut off"},
		"a hash twice":          {put(entries, first, func(v []byte) []byte { return append(v, v[:34+int(v[32])<<8+int(v[33])]...) }), "none"},
		"a record that is none": {put(entries, first, func(v []byte) []byte { v[34] = 0xfe; return v }), "none"},
	} {
		c, path := newCache(t)
		mustSave(t, c, listOf(t, serial(2), 0, 3003, func(n uint64) eklist.Record {
			return named(fmt.Sprint("node-", n), strings.Repeat("x", 200))
		}), meta(1))
		craft(t, path, test.change)
		got, m, err := c.Load(t.Context())
		if got != nil || m != (listcache.Meta{}) || err == nil || errors.Is(err, listcache.ErrNone) ||
			!strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, %v, want %q", name, got != nil, err, test.want)
		}
		next := listOf(t, serial(3), 1, 50, nil)
		mustSave(t, c, next, meta(3))
		wantLoad(t, path, next, meta(3))
	}
}
