package listcache

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

func (c *Cache) load(ctx context.Context) (list *eklist.Snapshot, meta Meta, err error) {
	err = c.file.Read(ctx, func(tx *bbolt.Tx) error {
		st, err := c.readState(tx)
		if err != nil {
			return err
		}
		meta = st.meta()
		list, err = readList(ctx, tx, st)
		return err
	})
	if err != nil {
		return nil, Meta{}, err
	}
	return list, meta, nil
}

// readList returns the list that a state describes.
func readList(ctx context.Context, tx *bbolt.Tx, st *state) (*eklist.Snapshot, error) {
	if most := tx.Size() / int64(entryHead); st.Entries < 0 || int64(st.Entries) > most {
		return nil, boltfile.Unusable("has %d entries and room for %d", st.Entries, most)
	}
	b := tx.Bucket([]byte(listBucket))
	if b == nil {
		return nil, boltfile.Unusable("has no bucket %q", listBucket)
	}
	builder := eklist.NewBuilder(st.header(), st.Entries)
	if err := b.ForEach(func(_, value []byte) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read the list: %w", err)
		}
		return addEntries(builder, value)
	}); err != nil {
		return nil, err
	}
	list, err := builder.Snapshot()
	if err != nil {
		return nil, boltfile.Unusable("holds a list that is none: %v", err)
	}
	if list.Len() != st.Entries {
		return nil, boltfile.Unusable("has %d entries, not %d", list.Len(), st.Entries)
	}
	return list, nil
}
