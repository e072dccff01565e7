package listcache

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

func (c *Cache) load(ctx context.Context) (*eklist.Snapshot, Meta, error) {
	file, err := boltfile.Open(ctx, c.path, os.O_RDONLY, unix.LOCK_SH)
	if err != nil {
		return nil, Meta{}, boltfile.ExplainMissing(c.path, err, ErrNone)
	}
	if err := boltfile.Inspect(file); err != nil {
		file.Close()
		return nil, Meta{}, err
	}
	var list *eklist.Snapshot
	var meta Meta
	err = boltfile.With(file, bbolt.Options{ReadOnly: true}, func(db *bbolt.DB) error {
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
		return nil, boltfile.Damaged("it has %d entries and room for %d", st.Entries, most)
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
		return nil, boltfile.Damaged("its entries are not those that were written")
	}
	if err := m.upTo(nil); err != nil {
		return nil, err
	}
	list, err := m.builder.Snapshot()
	if err != nil {
		return nil, boltfile.Damaged("%v", err)
	}
	if list.Len() != st.Entries {
		return nil, boltfile.Damaged("it has %d entries, not %d", list.Len(), st.Entries)
	}
	return list, nil
}

// eachValue calls f with the values of a bucket, in order.
func eachValue(ctx context.Context, tx *bbolt.Tx, bucket string, f func(value []byte) error) error {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return boltfile.Damaged("it has no bucket %q", bucket)
	}
	return b.ForEach(func(_, value []byte) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the list: %w", err)
		}
		return f(value)
	})
}
