package listcache

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

func (c *Cache) load(ctx context.Context) (*eklist.Snapshot, Meta, error) {
	file, err := open(ctx, c.path, os.O_RDONLY, unix.LOCK_SH)
	if err != nil {
		return nil, Meta{}, explainMissing(c.path, err)
	}
	if err := inspect(file); err != nil {
		file.Close()
		return nil, Meta{}, err
	}
	var list *eklist.Snapshot
	var meta Meta
	err = withDatabase(file, bbolt.Options{ReadOnly: true}, func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			st, err := c.readState(tx)
			if err != nil {
				return err
			}
			if list, err = readList(ctx, tx, st); err != nil {
				return err
			}
			meta = st.meta()
			c.memo.put(digest(st.Digest), list)
			return nil
		})
	})
	if err != nil {
		return nil, Meta{}, err
	}
	return list, meta, nil
}

// readList returns the list that a state describes.
func readList(ctx context.Context, tx *bbolt.Tx, st *state) (*eklist.Snapshot, error) {
	if most := tx.Size() / int64(entryHead); st.Entries < 0 || int64(st.Entries) > most {
		return nil, damaged("it has %d entries and room for %d", st.Entries, most)
	}
	m := merger{builder: eklist.NewBuilder(st.header(), st.Entries)}
	if err := eachValue(ctx, tx, changesBucket, m.change); err != nil {
		return nil, err
	}
	m.settle()
	h := sha256.New()
	if err := eachValue(ctx, tx, listBucket, func(value []byte) error {
		h.Write(value)
		return m.entries(value)
	}); err != nil {
		return nil, err
	}
	found := digest(h.Sum(nil))
	if err := eachValue(ctx, tx, changesBucket, func(value []byte) error {
		found = found.with(value)
		return nil
	}); err != nil {
		return nil, err
	}
	if found != digest(st.Digest) {
		return nil, damaged("its entries are not those that were written")
	}
	if err := m.upTo(nil); err != nil {
		return nil, err
	}
	list, err := m.builder.Snapshot()
	if err != nil {
		return nil, damaged("%v", err)
	}
	if list.Len() != st.Entries {
		return nil, damaged("it has %d entries, not %d", list.Len(), st.Entries)
	}
	return list, nil
}

// eachValue calls f with the values of a bucket, in order.
func eachValue(ctx context.Context, tx *bbolt.Tx, bucket string, f func(value []byte) error) error {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return damaged("it has no bucket %q", bucket)
	}
	return b.ForEach(func(_, value []byte) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the list: %w", err)
		}
		return f(value)
	})
}
