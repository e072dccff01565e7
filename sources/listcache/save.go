package listcache

import (
	"context"
	"encoding/binary"
	"errors"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

const (
	// valueSize is about how long a value of the list is: few of them to look
	// after, and little memory for one.
	valueSize = 128 << 10
	// batchSize is about how much one transaction writes. It is in memory twice
	// until then.
	batchSize = 8 << 20
)

func (c *Cache) save(ctx context.Context, list *eklist.Snapshot, meta Meta) error {
	if list == nil {
		return errors.New("there is no list to save")
	}
	st := c.describe(list, meta)
	check := func(tx *bbolt.Tx) error {
		there, err := c.readState(tx)
		if err != nil {
			return err
		}
		return there.checkSuccessor(list.Header())
	}
	return c.file.Write(ctx, check, func(db *bbolt.DB) error {
		if err := writeList(ctx, db, list); err != nil {
			return err
		}
		return db.Update(st.write)
	})
}

func writeList(ctx context.Context, db *bbolt.DB, list *eklist.Snapshot) error {
	w := listWriter{db: db}
	for key, record := range list.All() {
		if w.add(key, record); len(w.batch) < batchSize {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.flush(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.flush()
}

// listWriter writes the entries of a list into values, and those in batches.
type listWriter struct {
	db    *bbolt.DB
	batch []byte
	begin int   // of the last value in batch
	cuts  []int // the ends of those before
	key   uint64
}

func (w *listWriter) add(key sources.EKHash, record eklist.Record) {
	w.batch = appendEntry(w.batch, key, record)
	if len(w.batch)-w.begin >= valueSize {
		w.cut()
	}
}

func (w *listWriter) cut() {
	w.begin = len(w.batch)
	w.cuts = append(w.cuts, w.begin)
}

// flush writes what was added since.
func (w *listWriter) flush() error {
	if len(w.batch) > w.begin {
		w.cut()
	}
	err := w.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(listBucket))
		if err != nil {
			return err
		}
		b.FillPercent = 1 // keys count up
		from := 0
		for _, to := range w.cuts {
			if err := b.Put(binary.BigEndian.AppendUint64(nil, w.key), w.batch[from:to]); err != nil {
				return err
			}
			w.key++
			from = to
		}
		return nil
	})
	w.batch, w.cuts, w.begin = w.batch[:0], w.cuts[:0], 0
	return err
}
