package boltfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockWait is how long a call waits for others to be done with a file.
	lockWait = 2 * time.Second
	// lockPause is how long it waits between two attempts.
	lockPause = 20 * time.Millisecond
)

// errLocked says that others were not done with a file in time.
var errLocked = errors.New("another process has it open; give each its own cache_path")

// Open opens a regular file, which is not to be behind a link, and locks it: by
// unix.LOCK_SH against writers or by unix.LOCK_EX against all others. Closing it
// releases the lock.
func Open(ctx context.Context, path string, flags, lock int) (*os.File, error) {
	flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK   // a pipe would block the call
	file, err := os.OpenFile(path, flags, 0o600) //nolint:gosec // G304: the operator names it
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("is a link; name the file itself")
	}
	if err != nil {
		return nil, err
	}
	if err := lockRegular(ctx, file, lock); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func lockRegular(ctx context.Context, file *os.File, lock int) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("is not a regular file")
	}
	deadline := time.Now().Add(lockWait)
	for {
		err := unix.Flock(int(file.Fd()), lock|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock: %w", err)
		}
		if time.Now().After(deadline) {
			return errLocked
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause waits for a moment, or fails where ctx ends first.
func pause(ctx context.Context) error {
	timer := time.NewTimer(lockPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A Draft is the file beside a cache in which a new one is written, empty at
// first. Whoever writes holds its lock from the beginning to the end, also where
// it writes to the cache itself: so nobody else replaces the cache meanwhile.
type Draft struct {
	*os.File
	cache     string // the path of the cache
	published bool
}

func draftPath(cache string) string { return cache + ".new" }

// OpenDraft waits for its turn to write.
func OpenDraft(ctx context.Context, cache string) (*Draft, error) {
	path := draftPath(cache)
	for deadline := time.Now().Add(lockWait); ; {
		file, err := Open(ctx, path, os.O_RDWR|os.O_CREATE, unix.LOCK_EX)
		if err != nil {
			return nil, err
		}
		d := &Draft{File: file, cache: cache}
		// Another one's, that has become its cache or is gone since, is not to
		// be touched.
		if !d.isAt(path) {
			file.Close()
			if time.Now().After(deadline) {
				return nil, errLocked
			}
			continue
		}
		// What a process has left behind that did not come to its end.
		if err := errors.Join(file.Truncate(0), file.Chmod(0o600)); err != nil {
			d.Discard()
			return nil, err
		}
		return d, nil
	}
}

// isAt reports whether the draft is the file at a path.
func (d *Draft) isAt(path string) bool {
	mine, err := d.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

// Publish makes the draft, which has been written to the disk, the cache.
func (d *Draft) Publish() error {
	if err := os.Rename(draftPath(d.cache), d.cache); err != nil {
		return err
	}
	d.published = true
	dir, err := os.Open(filepath.Dir(d.cache))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// Remove removes the draft, unless it was published. This is done before the
// lock is released: afterwards it may be another one's.
func (d *Draft) Remove() {
	if !d.published {
		_ = os.Remove(draftPath(d.cache)) // what stays is used again
	}
}

// Discard removes the draft and releases the lock.
func (d *Draft) Discard() {
	d.Remove()
	d.Close()
}

// ExplainMissing returns none for a file that is not there, in a directory
// that is.
func ExplainMissing(path string, err, none error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("its directory: %w", err)
	}
	return none
}
