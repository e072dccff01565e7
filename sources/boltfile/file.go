package boltfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const (
	// lockWait is how long a call waits for others to release a file.
	lockWait = 2 * time.Second
	// lockPause is the pause between two attempts to lock.
	lockPause = 20 * time.Millisecond
)

// open opens a regular file that is not a link.
func open(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags|openFlags, 0o600) //nolint:gosec // G304: the operator names it
	if isLink(err) {
		return nil, errors.New("is a link; name the file itself")
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// lock locks a file until it is closed, exclusively if alone is true and otherwise together with
// other shared locks. The error is ErrBusy if others keep it locked too long, or ctx's error.
func lock(ctx context.Context, file *os.File, alone bool) error {
	for deadline := time.Now().Add(lockWait); ; {
		locked, err := tryLock(file, alone)
		if err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if locked {
			return nil
		}
		if time.Now().After(deadline) {
			return ErrBusy
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause waits for a moment, or fails if ctx ends first.
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

// lockWriters waits until nobody else writes. The lock file is never read, written or removed, so
// another program's file with that name would not be harmed.
func (f File) lockWriters(ctx context.Context) (unlock func(), err error) {
	file, err := open(lockPath(f.Path), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("the file of its lock, %q: %w", lockPath(f.Path), err)
	}
	if err := lock(ctx, file, true); err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// openDraft creates the file that will become the cache. The caller holds the writers' lock, so a
// draft that exists was left behind by a process that was killed, or is another program's file.
func (f File) openDraft(ctx context.Context) (*os.File, error) {
	const create = os.O_RDWR | os.O_CREATE | os.O_EXCL
	draft, err := open(draftPath(f.Path), create)
	if errors.Is(err, fs.ErrExist) {
		if err := f.removeLeftover(ctx); err != nil {
			return nil, fmt.Errorf("%q, which would become the cache: %w", draftPath(f.Path), err)
		}
		draft, err = open(draftPath(f.Path), create)
	}
	return draft, err
}

func (f File) removeLeftover(ctx context.Context) error {
	file, err := open(draftPath(f.Path), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	ours, err := f.isOurs(ctx, file)
	if err != nil {
		return err
	}
	if !ours {
		return ErrForeign
	}
	return os.Remove(draftPath(f.Path))
}
