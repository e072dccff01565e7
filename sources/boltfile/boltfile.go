// Package boltfile keeps caches in bbolt files that are replaced as a whole.
//
// bbolt maps a file into memory and follows the page numbers in it, so a damaged or crafted file
// can crash the process in a way that cannot be recovered. This package therefore never maps a file
// that it finds. It copies the file into memory that no other process can access and maps the copy,
// if that is intact. So what was checked is what is mapped, even if somebody changes the file in
// the meantime.
//
//   - A file is written once, beside the file that it replaces, and ends with the SHA-256
//     of everything before; bbolt ignores what comes after its last page. The file is
//     synced, renamed, and never changed again. File and checksum are one, so a crash at
//     any moment leaves the old file or the new file.
//   - A file counts only if its checksum is right, if it belongs to the user of this
//     process, if nobody else may write to it, and if it is no longer than its limit. The
//     checksum finds damage, not malice: the owner, who is the user of this process, can
//     still write a wrong file.
//   - Writers exclude each other by a lock on a separate file, whose name ends in ".lock".
//     Readers do not wait for each other.
package boltfile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// A File is a cache file. It holds no state: any number of Files, in any number of processes, may
// use the same path.
type File struct {
	// Path is the file. Beside it are Path + ".new" while it is being written, and Path +
	// ".lock". Names returns all three.
	Path string
	// Limit is the largest size, in bytes, of a file that is read or written.
	Limit int64
	// Format is the name and the version of the content's format. It is part of the checksum, so a
	// file with another format does not count.
	Format string
	// Bucket is a bucket that every version of the format has. By its name, a damaged cache is told
	// from a file of another program, which must not be replaced because of a mistyped path.
	Bucket string
	// AnyOwner makes Read accept a file that belongs to another user, for callers that examine the
	// cache of another process.
	AnyOwner bool
}

// Names returns the files that a cache at a path uses.
func Names(path string) []string { return []string{path, draftPath(path), lockPath(path)} }

func draftPath(path string) string { return path + ".new" }
func lockPath(path string) string  { return path + ".lock" }

var (
	// ErrNone is the error of Read if there is no file yet.
	ErrNone = errors.New("nothing is cached yet")
	// ErrBusy means that another process has kept a file locked for longer than a call waits. The
	// content of the file is then unknown.
	ErrBusy = errors.New("another process has it open; give each its own cache_path")
	// ErrForeign means that a file may belong to another program. Such a file is not replaced.
	ErrForeign = errors.New("belongs to something else; choose another cache_path, or remove the file")
)

// An UnusableError means that a file does not count, and says why. Write replaces such a file.
type UnusableError struct{ Problem string }

func (e *UnusableError) Error() string { return e.Problem }

// Unusable returns an *UnusableError.
func Unusable(format string, args ...any) error {
	return &UnusableError{fmt.Sprintf(format, args...)}
}

// pageSize is the size of bbolt's pages, on every machine.
const pageSize = 4096

// Read calls use with a transaction on the content of the file, and returns the error of use. The
// values that use sees are valid until it returns.
//
// If use is not called, the error is ErrNone, an *UnusableError or ErrForeign if there is no usable
// file; ErrBusy or ctx's error if that could not be determined; and any other error if the file
// cannot be opened or copied.
func (f File) Read(ctx context.Context, use func(*bbolt.Tx) error) error {
	file, err := open(f.Path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return f.missing()
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := lock(ctx, file, false); err != nil {
		return err
	}
	intact, err := newMemory()
	if err != nil {
		return fmt.Errorf("make room for it in memory: %w", err)
	}
	if err := f.inspect(ctx, file, intact); err != nil {
		intact.Close()
		return err
	}
	return withDatabase(intact, bbolt.Options{ReadOnly: true}, func(db *bbolt.DB) error { return db.View(use) })
}

// Stamp sets the modification time of the file, for other processes to see. It writes no data, so
// it works on a full disk.
func (f File) Stamp(at time.Time) error { return stamp(f.Path, at) }

// missing returns the error for a missing file, or for a missing folder.
func (f File) missing() error {
	if _, err := os.Stat(filepath.Dir(f.Path)); err != nil {
		return fmt.Errorf("its directory: %w", err)
	}
	return ErrNone
}

// Write replaces the file with a new file that fill has written. If it returns no error, the new
// file is on disk; otherwise either the old or the new file may be there.
//
// If there is a file that counts, Write first calls check, unless that is nil, with a transaction
// on its content. If check fails, Write returns its error, unless that is an *UnusableError, which
// means that the file does not count. Nobody else can replace the file between check and the end of
// Write.
//
// fill may use several transactions. Nothing that it writes counts until all of it is on disk.
// File.Bucket exists already. If ctx ends, Write stops waiting for other writers and reading the
// old file; fill must check ctx itself.
func (f File) Write(ctx context.Context, check func(*bbolt.Tx) error, fill func(*bbolt.DB) error) error {
	unlock, err := f.lockWriters(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if check == nil {
		check = func(*bbolt.Tx) error { return nil }
	}
	err = f.Read(ctx, check)
	if unusable := (*UnusableError)(nil); err != nil && !errors.Is(err, ErrNone) && !errors.As(err, &unusable) {
		return err
	}
	draft, err := f.openDraft(ctx)
	if err != nil {
		return err
	}
	defer draft.Close()
	if err := f.writeDraft(draft, fill); err != nil {
		_ = os.Remove(draftPath(f.Path)) // if that fails, the next Write removes it
		return err
	}
	return syncFolder(filepath.Dir(f.Path))
}

// writeDraft fills the draft, adds its checksum, syncs it and renames it.
func (f File) writeDraft(draft *os.File, fill func(*bbolt.DB) error) error {
	// bbolt closes the file that it is given.
	file, err := duplicate(draft)
	if err != nil {
		return fmt.Errorf("duplicate a file descriptor: %w", err)
	}
	if err := withDatabase(file, bbolt.Options{NoGrowSync: true}, func(db *bbolt.DB) error {
		// This bucket is on disk before anything else. If this process is killed, the next Write
		// recognizes the leftover by it.
		if err := db.Update(func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucket([]byte(f.Bucket))
			return err
		}); err != nil {
			return err
		}
		db.NoSync = true // until seal
		return fill(db)
	}); err != nil {
		return err
	}
	if err := f.seal(draft); err != nil {
		return err
	}
	return os.Rename(draft.Name(), f.Path)
}

// seal adds the checksum to a complete draft, and syncs it.
func (f File) seal(draft *os.File) error {
	info, err := draft.Stat()
	if err != nil {
		return err
	}
	if size := info.Size() + sha256.Size; size > f.Limit {
		return fmt.Errorf("a file of %d bytes would be longer than its limit of %d bytes", size, f.Limit)
	}
	sum, err := f.checksum(context.Background(), draft, info.Size(), io.Discard)
	if err != nil {
		return err
	}
	if _, err := draft.WriteAt(sum[:], info.Size()); err != nil {
		return err
	}
	return draft.Sync()
}

// errCopy is wrapped by the error of checksum if the bytes could not be copied, which says nothing
// about the file.
var errCopy = errors.New("copy it into memory")

// checksum returns the SHA-256 of the format and the first size bytes of a file, and copies those
// bytes to to.
func (f File) checksum(
	ctx context.Context, file io.ReaderAt, size int64, to io.Writer,
) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s\n", len(f.Format), f.Format)
	var copied error
	err = eachBlock(ctx, file, size, func(block []byte) {
		h.Write(block)
		if copied == nil {
			_, copied = to.Write(block)
		}
	})
	if copied != nil {
		return sum, fmt.Errorf("%w: %w", errCopy, copied)
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

// withDatabase opens a file as a database, calls use, and closes both.
func withDatabase(file *os.File, opts bbolt.Options, use func(*bbolt.DB) error) error {
	opts.OpenFile = func(string, int, os.FileMode) (*os.File, error) { return file, nil }
	opts.Timeout = lockWait // nobody else has locked it
	opts.PageSize = pageSize
	opts.NoStatistics = true
	db, err := bbolt.Open(file.Name(), 0o600, &opts)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	if err := use(db); err != nil {
		_ = db.Close()
		return err
	}
	return db.Close()
}

func syncFolder(path string) error {
	dir, err := os.Open(path) //nolint:gosec // G304: the operator names it
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
