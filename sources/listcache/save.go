package listcache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io/fs"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

const (
	// valueSize is about how long a value of the list is: few of them to look
	// after, and little memory for one.
	valueSize = 128 << 10
	// batchSize is about how much one transaction writes of a new file. It is
	// in memory twice until then.
	batchSize = 8 << 20

	// Changes are kept beside the list up to an eighth of its length, and up to
	// maxChanges times; a short list is written anew only every so often, too.
	changesShare = 8
	minChanges   = 64 << 10
	maxChanges   = 1024
)

func (c *Cache) save(ctx context.Context, previous, next *eklist.Snapshot, meta Meta) error {
	if next == nil {
		return errors.New("there is no list to save")
	}
	st := c.describe(next, meta)
	d, err := boltfile.OpenDraft(ctx, c.path)
	if err != nil {
		return err
	}
	done, err := c.update(ctx, previous, next, &st)
	if done || err != nil {
		d.Discard()
	} else {
		err = replace(ctx, d, next, &st)
	}
	if err == nil {
		c.memo.put(digest(st.Digest), next)
	}
	return err
}

// update writes into the file that is there. It reports false where that has to
// be replaced, and an error where it must not be.
func (c *Cache) update(ctx context.Context, previous, next *eklist.Snapshot, st *state) (done bool, err error) {
	file, err := boltfile.Open(ctx, c.path, os.O_RDWR, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = boltfile.Inspect(file)
	if err != nil {
		file.Close()
	} else {
		err = boltfile.With(file, bbolt.Options{}, func(db *bbolt.DB) error {
			done, err = c.updateDatabase(db, previous, next, st)
			return err
		})
	}
	if unusable := (*boltfile.UnusableError)(nil); errors.As(err, &unusable) {
		return false, nil
	}
	return done, err
}

func (c *Cache) updateDatabase(db *bbolt.DB, previous, next *eklist.Snapshot, st *state) (done bool, err error) {
	var there *state
	if err := db.View(func(tx *bbolt.Tx) error {
		there, err = c.readState(tx)
		return err
	}); err != nil {
		return false, err
	}
	if err := there.checkSuccessor(next.Header()); err != nil {
		return false, err
	}
	if !c.memo.holds(digest(there.Digest), previous) {
		return false, nil
	}
	changes, fits := encodeChanges(previous, next, there)
	if !fits {
		return false, nil
	}
	st.Digest = there.Digest
	st.ListBytes = there.ListBytes
	st.ChangesBytes = there.ChangesBytes + int64(len(changes))
	st.Changes = there.Changes
	err = db.Update(func(tx *bbolt.Tx) error {
		if len(changes) > 0 {
			b := tx.Bucket([]byte(changesBucket))
			if b == nil {
				return boltfile.Damaged("it has no bucket %q", changesBucket)
			}
			b.FillPercent = 1 // keys count up
			if err := b.Put(binary.BigEndian.AppendUint64(nil, st.Changes), changes); err != nil {
				return err
			}
			st.Changes++
			sum := digest(there.Digest).with(changes)
			st.Digest = sum[:]
		}
		return st.write(tx)
	})
	return err == nil, err
}

// encodeChanges returns what a file has to be told so that it holds next. It
// reports false where that is better written anew.
func encodeChanges(previous, next *eklist.Snapshot, there *state) (changes []byte, fits bool) {
	if previous == next {
		return nil, true
	}
	room := max(minChanges, there.ListBytes/changesShare) - there.ChangesBytes
	for change := range previous.Changes(next) {
		if change.Kind == eklist.Removed {
			changes = appendGone(changes, change.Hash)
		} else {
			changes = appendEntry(changes, change.Hash, change.Record)
		}
		if int64(len(changes)) > room {
			return nil, false
		}
	}
	return changes, len(changes) == 0 || there.Changes < maxChanges
}

// replace writes a new file and puts it in the place of the one that is there.
// Until then nothing of it counts, so that it is synced once, at its end. It
// releases the lock of the draft.
func replace(ctx context.Context, d *boltfile.Draft, list *eklist.Snapshot, st *state) error {
	return boltfile.With(d.File, bbolt.Options{NoSync: true, NoGrowSync: true}, func(db *bbolt.DB) error {
		defer d.Remove()
		w := listWriter{db: db, hash: sha256.New()}
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
		if err := w.flush(); err != nil {
			return err
		}
		st.Digest, st.ListBytes, st.ChangesBytes, st.Changes = w.hash.Sum(nil), w.written, 0, 0
		if err := db.Update(func(tx *bbolt.Tx) error {
			if _, err := tx.CreateBucket([]byte(changesBucket)); err != nil {
				return err
			}
			return st.write(tx)
		}); err != nil {
			return err
		}
		if err := db.Sync(); err != nil {
			return err
		}
		return d.Publish()
	})
}

// listWriter writes the entries of a list into values, and those in batches.
type listWriter struct {
	db      *bbolt.DB
	batch   []byte
	begin   int   // of the last value in batch
	cuts    []int // the ends of those before
	key     uint64
	written int64
	hash    hash.Hash // of all that is written
}

func (w *listWriter) add(key eklist.Hash, record eklist.Record) {
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
	w.written += int64(len(w.batch))
	w.hash.Write(w.batch)
	w.batch, w.cuts, w.begin = w.batch[:0], w.cuts[:0], 0
	return err
}
