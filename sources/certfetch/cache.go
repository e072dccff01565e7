package certfetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// What the cache file holds, by bucket: formatKey in the first, records in the
// second.
const (
	formatBucket  = "tpm certificate cache"
	recordsBucket = "tpm certificates"

	formatKey = "format"
)

// format is the value of formatKey: the version of all else in the file.
const format = "1"

// maxFile is the size of the file in bytes above which it is replaced by one that
// holds what memory does: what others have written to it, and room that is free.
const maxFile = 4 * maxBodies

var errNoFile = errors.New("there is none yet")

// Load reads the cache into memory. An error says why the file was not used, or
// which part of it was left out: what is in memory, and what is fetched from now
// on, serves nevertheless. No file yet is no error. Call it once, before the first
// answer. It is Stats.CacheError until the file was written.
//
// ctx is looked at now and then; it does not interrupt a disk that hangs.
func (f *Fetcher) Load(ctx context.Context) error {
	if f.path == "" {
		return nil
	}
	records, spoiled, err := f.read(ctx)
	if err = errors.Join(err, spoiled); err != nil {
		err = fmt.Errorf("cache %q: %w", f.path, err)
	}
	// What was used last is in front: the order of the file says nothing of it.
	slices.SortStableFunc(records, func(a, b record) int { return a.Fetched.Compare(b.Fetched) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		f.remember(r)
	}
	f.cacheErr, f.spoiled = err, spoiled != nil
	return err
}

// remember takes a record into memory, unless something newer is there. The caller
// holds f.mu.
func (f *Fetcher) remember(r record) {
	n := r.name()
	if len(r.Problem) > 0 {
		if _, ok := f.failures.get(n); !ok {
			f.failures.put(n, &failure{
				problem: printable(string(r.Problem)), notFound: r.NotFound,
				at: r.Fetched, until: r.Until, times: r.Times,
			})
		}
		return
	}
	if _, ok := f.objects.get(n); !ok {
		f.objects.put(n, &kept{body: r.body, fetched: r.Fetched, until: r.Until, proven: r.Proven})
	}
}

// read returns what the file holds, as much as there is room for in memory. With
// an error, it is what could be read; spoiled is why the rest of a file was left out
// that is whole otherwise.
func (f *Fetcher) read(ctx context.Context) (records []record, spoiled, err error) {
	file, err := boltfile.Open(ctx, f.path, os.O_RDONLY, unix.LOCK_SH)
	if err != nil {
		if err = boltfile.ExplainMissing(f.path, err, errNoFile); errors.Is(err, errNoFile) {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	if err := boltfile.Inspect(file); err != nil {
		file.Close()
		return nil, nil, err
	}
	err = boltfile.With(file, bbolt.Options{ReadOnly: true}, func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			bucket, err := recordsOf(tx)
			if err != nil {
				return err
			}
			var size int64
			return bucket.ForEach(func(key, value []byte) error {
				if err := ctx.Err(); err != nil {
					return fmt.Errorf("read what was fetched: %w", err)
				}
				if size += int64(len(value)); size > 2*maxBodies {
					return nil
				}
				r, err := decodeRecord(key, value)
				if err != nil {
					spoiled = fmt.Errorf("part of it was skipped: the record %.8x: %w", key, err)
					return nil
				}
				records = append(records, r)
				return nil
			})
		})
	})
	return records, spoiled, err
}

// recordsOf returns the bucket with the records. Where there is none that this
// release can use, the error is a *boltfile.UnusableError; it is
// boltfile.ErrForeign where another program made the file.
func recordsOf(tx *bbolt.Tx) (*bbolt.Bucket, error) {
	about, bucket := tx.Bucket([]byte(formatBucket)), tx.Bucket([]byte(recordsBucket))
	if about == nil {
		if first, _ := tx.Cursor().First(); first != nil && bucket == nil {
			return nil, boltfile.ErrForeign
		}
		return nil, boltfile.Damaged("it has no bucket %q", formatBucket)
	}
	if there := about.Get([]byte(formatKey)); string(there) != format {
		return nil, &boltfile.UnusableError{Problem: fmt.Sprintf(
			"has the format %.99q, not %q: it is damaged or from another release; it will be replaced", there, format)}
	}
	if bucket == nil {
		return nil, boltfile.Damaged("it has no bucket %q", recordsBucket)
	}
	return bucket, nil
}

// flush writes to the file what has changed since the last time.
func (f *Fetcher) flush(ctx context.Context) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	names, spoiled := f.changed, f.spoiled
	if f.path == "" || len(names) == 0 {
		f.mu.Unlock()
		return nil
	}
	f.changed, f.spoiled = map[name]bool{}, false
	f.mu.Unlock()
	err := f.write(ctx, names, spoiled)
	if err != nil {
		err = fmt.Errorf("cache %q: what was fetched is not saved and must be fetched again after a restart: %w",
			f.path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cacheErr = err; err != nil {
		f.spoiled = f.spoiled || spoiled
		for n := range names {
			f.note(n)
		}
	}
	return err
}

// write brings the file up to date, or replaces it where it is of no use. Until
// that is done, a kill leaves it as it was.
func (f *Fetcher) write(ctx context.Context, names map[name]bool, spoiled bool) error {
	draft, err := boltfile.OpenDraft(ctx, f.path)
	if err != nil {
		return err
	}
	done, err := f.update(ctx, names, spoiled)
	if done || err != nil {
		draft.Discard()
		return err
	}
	return boltfile.With(draft.File, bbolt.Options{NoSync: true, NoGrowSync: true}, func(db *bbolt.DB) error {
		defer draft.Remove()
		if err := db.Update(f.writeAll); err != nil {
			return err
		}
		if err := db.Sync(); err != nil {
			return err
		}
		return draft.Publish()
	})
}

// update writes into the file that is there. It reports false where that has to
// be replaced, as one that is spoiled, and an error where it must not be.
func (f *Fetcher) update(ctx context.Context, names map[name]bool, spoiled bool) (done bool, err error) {
	file, err := boltfile.Open(ctx, f.path, os.O_RDWR, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	info, err := file.Stat()
	if err == nil {
		err = boltfile.Inspect(file)
	}
	if err != nil || info.Size() > maxFile || spoiled {
		file.Close()
	} else {
		err = boltfile.With(file, bbolt.Options{}, func(db *bbolt.DB) error {
			return db.Update(func(tx *bbolt.Tx) error { return f.writeChanges(tx, names) })
		})
		done = err == nil
	}
	if unusable := (*boltfile.UnusableError)(nil); errors.As(err, &unusable) {
		return false, nil
	}
	return done, err
}

// writeAll writes all that memory holds into an empty file.
func (f *Fetcher) writeAll(tx *bbolt.Tx) error {
	about, err := tx.CreateBucket([]byte(formatBucket))
	if err != nil {
		return err
	}
	if err := about.Put([]byte(formatKey), []byte(format)); err != nil {
		return err
	}
	bucket, err := tx.CreateBucket([]byte(recordsBucket))
	if err != nil {
		return err
	}
	all := map[name]bool{}
	f.mu.Lock()
	f.objects.each(func(n name, _ *kept) { all[n] = true })
	f.failures.each(func(n name, _ *failure) { all[n] = true })
	f.mu.Unlock()
	return f.put(bucket, all)
}

// writeChanges writes what memory holds by some names.
func (f *Fetcher) writeChanges(tx *bbolt.Tx, names map[name]bool) error {
	bucket, err := recordsOf(tx)
	if err != nil {
		return err
	}
	return f.put(bucket, names)
}

// put writes what memory holds by some names, and removes what it does not.
func (f *Fetcher) put(bucket *bbolt.Bucket, names map[name]bool) error {
	for n := range names {
		f.mu.Lock()
		object, failure := f.objects.peek(n), f.failures.peek(n)
		f.mu.Unlock()
		if err := putRecord(bucket, keyOf(objectKey, n), object != nil, func() record {
			return objectRecord(n, object)
		}); err != nil {
			return err
		}
		if err := putRecord(bucket, keyOf(failureKey, n), failure != nil, func() record {
			return failureRecord(n, failure)
		}); err != nil {
			return err
		}
	}
	return nil
}

func putRecord(bucket *bbolt.Bucket, key []byte, there bool, get func() record) error {
	if !there {
		return bucket.Delete(key)
	}
	value, err := get().encode()
	if err != nil {
		return err
	}
	return bucket.Put(key, value)
}
