package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// The buckets of the cache file. Each version of the format has recordsBucket.
const recordsBucket = "tpm certificates"

// format is the version of the file's content.
const format = "tpm certificates 3"

const (
	// maxFile is the maximum size, in bytes, of a file that is read or written. What is in memory
	// takes less.
	maxFile = 512 << 20
	// batchSize is the approximate number of bytes that one transaction writes.
	batchSize = 8 << 20
)

func cacheFile(path string) boltfile.File {
	return boltfile.File{Path: path, Limit: maxFile, Format: format, Bucket: recordsBucket}
}

// Examine makes f read a cache that belongs to a server, whoever owns the file. It must be called
// before Load. Run must not be called afterwards, since it would write the file.
func (f *Fetcher) Examine() { f.anyOwner = true }

// errUnread is the reason why no server is asked while the content of the cache is not known.
var errUnread = fmt.Errorf("another process has the cache locked, and what was fetched before, such as "+
	"a later CRL, is not known until it can be read: %w", ErrNotAsked)

// Load reads the cache into memory. An error says why the file was not used, or which part of it
// was left out; what is in memory, and what is fetched from now on, is used all the same. A missing
// file is not an error. Load must be called once, before the first request, because what a request
// replaces is compared only with what is in memory. CacheError returns the error until the file has
// been written.
//
// If another process keeps the file locked for longer than Load waits, or if ctx ends, the content
// of the file is not known. Then Get asks no server, since an older CRL could replace the one in
// the file, until Load is called again and succeeds. Run does that.
//
// ctx is checked now and then; it does not interrupt a disk that hangs.
func (f *Fetcher) Load(ctx context.Context) error {
	if f.path == "" {
		return nil
	}
	records, err := f.read(ctx)
	unread := errors.Is(err, boltfile.ErrBusy) || err != nil && ctx.Err() != nil
	if err != nil {
		err = fmt.Errorf("cache %q: %w", f.path, err)
	}
	// The most recently fetched is put last, since the order in the file has no meaning.
	slices.SortStableFunc(records, func(a, b record) int { return a.Fetched.Compare(b.Fetched) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range records {
		f.remember(r)
	}
	f.cacheErr, f.unread = err, unread
	return err
}

// remember adds a record to memory, unless something newer is there. The caller must hold f.mu.
func (f *Fetcher) remember(r record) {
	switch {
	case len(r.Problem) == 0 && f.objects.get(r.name) == nil:
		f.objects.put(r.name, &kept{body: r.Body, fetched: r.Fetched, until: r.Until, proven: r.Proven})
	case len(r.Problem) > 0 && !f.failures.Contains(r.name):
		f.failures.Add(r.name, &failure{
			problem: printable(string(r.Problem)), notFound: r.NotFound,
			at: r.Fetched, until: r.Until, times: r.Times,
		})
	}
}

// read returns the records in the file. If it also returns an error, that says why other records
// were left out.
func (f *Fetcher) read(ctx context.Context) (records []record, err error) {
	var skipped error
	file := cacheFile(f.path)
	file.AnyOwner = f.anyOwner
	err = file.Read(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(recordsBucket))
		if bucket == nil {
			return boltfile.Unusable("has no bucket %q", recordsBucket)
		}
		return bucket.ForEach(func(key, value []byte) error {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("read what was fetched: %w", err)
			}
			r, err := decodeRecord(key, value)
			if err != nil {
				skipped = fmt.Errorf("part of it was skipped: the record %.8x: %w", key, err)
				return nil
			}
			records = append(records, r)
			return nil
		})
	})
	switch {
	case errors.Is(err, boltfile.ErrNone):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return records, skipped
}

// flush writes the file if anything has changed since the last time. It first reads the file if
// that was not possible before.
func (f *Fetcher) flush(ctx context.Context) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	unread := f.unread
	f.mu.Unlock()
	if unread {
		if err := f.Load(ctx); errors.Is(err, boltfile.ErrBusy) || ctx.Err() != nil {
			return err
		}
	}
	f.mu.Lock()
	changed := f.changed
	f.changed = false
	f.mu.Unlock()
	if !changed {
		return nil
	}
	err := cacheFile(f.path).Write(ctx, nil, f.writeAll)
	if err != nil {
		err = fmt.Errorf("cache %q: what was fetched is not saved and must be fetched again after a restart: %w",
			f.path, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cacheErr = err; err != nil {
		f.changed = true
	}
	return err
}

// writeAll writes everything that is in memory into an empty file.
func (f *Fetcher) writeAll(db *bbolt.DB) error {
	records := f.records()
	for len(records) > 0 {
		if err := db.Update(func(tx *bbolt.Tx) error {
			bucket := tx.Bucket([]byte(recordsBucket))
			for size := 0; len(records) > 0 && size < batchSize; records = records[1:] {
				value, err := records[0].encode()
				if err != nil {
					return err
				}
				size += len(value)
				if err := bucket.Put(records[0].key(), value); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// records returns everything that is in memory. Their bodies are shared.
func (f *Fetcher) records() (all []record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.objects.all() {
		for _, n := range s.Keys() {
			k, _ := s.Peek(n)
			all = append(all, objectRecord(n, k))
		}
	}
	for _, n := range f.failures.Keys() {
		fl, _ := f.failures.Peek(n)
		all = append(all, failureRecord(n, fl))
	}
	return all
}
