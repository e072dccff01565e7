package list_test

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A file whose checksum is right but which holds something other than a list of this configuration
// is ignored with a warning: it is not served, does not stop the process, and is replaced by the
// next list.
func TestCraftedCache(t *testing.T) {
	good := wordsOf(7, "stranger")
	path := filepath.Join(t.TempDir(), "list.db")
	cfg := list.Config{Cache: list.NewCache(path, list.DefaultMaxBytes, "url")}
	must(t, newList(t, &origin{Copy: list.Copy{Data: good}}, cfg).Load(t.Context()))
	whole, err := os.ReadFile(path)
	must(t, err)
	file := boltfile.File{Path: path, Limit: 64 << 20, Format: "tpm list 3", Bucket: "tpm list state"}
	var record map[string]any
	must(t, file.Read(t.Context(), func(tx *bbolt.Tx) error {
		return json.Unmarshal(tx.Bucket([]byte("tpm list state")).Get([]byte("record")), &record)
	}))
	for name, test := range map[string]struct {
		record map[string]any // what differs
		blocks []string       // nil: those of the list
		want   string
	}{
		"another list":     {record: map[string]any{"of": "AAAA"}, want: "the list of another configuration"},
		"no record":        {record: map[string]any{"size": "x"}, want: "its record"},
		"negative size":    {record: map[string]any{"size": -1}, want: "no list of -1 bytes"},
		"huge size":        {record: map[string]any{"size": 1 << 40}, want: "no list of 1099511627776 bytes"},
		"a byte is gone":   {blocks: []string{string(good[1:])}, want: "bytes of a list of"},
		"a byte more":      {blocks: []string{string(good), "x"}, want: "more than a list of"},
		"no block":         {blocks: []string{}, want: "holds no list"},
		"no list in it":    {blocks: []string{strings.Repeat("x", len(good))}, want: "no list of words"},
		"a serial to come": {record: map[string]any{"serial": 9}, blocks: []string{strings.Repeat("x", len(good))}, want: "no list of words"},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(path, whole, 0o600))
			must(t, file.Write(t.Context(), nil, func(db *bbolt.DB) error {
				return craft(db, record, test.record, test.blocks, string(good))
			}))
			o := &origin{err: errDown}
			l := newList(t, o, cfg)
			refused(t, l.Load(t.Context()), "down")
			if _, err := l.Current(); err == nil {
				t.Error("something serves")
			}
			if w := strings.Join(l.Status().Warnings, "; "); !strings.Contains(w, "the cache was not used") ||
				!strings.Contains(w, test.want) {
				t.Errorf("warnings %q, want %q", w, test.want)
			}
			o.Copy, o.err = list.Copy{Data: wordsOf(3, "one")}, nil
			must(t, l.Load(t.Context()))
			again := newList(t, &origin{err: errDown}, cfg)
			refused(t, again.Load(t.Context()), "down")
			want(t, again, "one")
		})
	}
}

// craft fills a file with a record that differs, and with blocks.
func craft(db *bbolt.DB, record, differs map[string]any, blocks []string, list string) error {
	crafted := map[string]any{}
	maps.Copy(crafted, record)
	maps.Copy(crafted, differs)
	value, err := json.Marshal(crafted)
	if err != nil {
		return err
	}
	if blocks == nil {
		blocks = []string{list}
	}
	return db.Update(func(tx *bbolt.Tx) error {
		if err := tx.Bucket([]byte("tpm list state")).Put([]byte("record"), value); err != nil || len(blocks) == 0 {
			return err
		}
		b, err := tx.CreateBucket([]byte("tpm list blocks"))
		if err != nil {
			return err
		}
		for i, block := range blocks {
			if err := b.Put(binary.BigEndian.AppendUint64(nil, uint64(i)), []byte(block)); err != nil {
				return err
			}
		}
		return nil
	})
}
