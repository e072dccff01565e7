// Package file implements an origin of package list: a file.
//
// Watching the folders that lead to the file finds a change within a fraction of a second. The file
// is also opened every Config.Every, since a watch does not notice what another host writes to a
// network file system.
//
// The file may be replaced in any way: by renaming another file over it (best, since nobody ever
// sees half a file), by writing it in place, or by swapping a symbolic link or a folder on the way
// to it, as the kubelet does with a mounted ConfigMap.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

const (
	// attempts is how often a file that changes while it is read is read again.
	attempts = 3
	// quietTime is how long a file must have been left alone before its content is used: the first
	// half of a text list is a text list.
	quietTime = 100 * time.Millisecond
	// settleTime is longer than the resolution of any file system's clock. A file may have been
	// changed right after it was read without looking any different, so it is read once more when
	// this time has passed.
	settleTime = 2 * time.Second
)

// Config says where the file is.
type Config struct {
	// Path is the file. It is resolved anew at each look, including symbolic links. A relative path
	// is relative to the working directory of the process.
	Path string
	// MaxBytes is the maximum length of the file; list.DefaultMaxBytes if it is zero.
	MaxBytes int64
	// Every is how often Watch checks whether the route to the file has changed; list.DefaultEvery
	// if it is zero.
	Every time.Duration
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
}

// An Origin is a file. It implements list.Origin.
type Origin struct {
	cfg Config
	// quiet and openWatch are quietTime and inotify, except in tests.
	quiet     time.Duration
	openWatch watchFunc

	// unwatched says why the file is not watched, so that changes are found only by polling; empty
	// if it is watched.
	unwatched atomic.Pointer[string]

	// seen is how the file looked when it was last read, and since is since when it has looked like
	// that. Only Read uses them.
	seen  identity
	since time.Time
}

// errChanged means that the file has changed while it was read.
var errChanged = errors.New("changed while it was read")

// New checks the configuration and returns the origin. It touches no file. If the configuration is
// invalid, it returns the joined errors, one sources.FieldError for each problem.
func New(cfg Config) (*Origin, error) {
	var errs []error
	switch {
	case cfg.Path == "":
		errs = append(errs, sources.BadField("path", "is missing"))
	case strings.ContainsRune(cfg.Path, 0):
		errs = append(errs, sources.BadField("path", "has a zero byte in it"))
	}
	limit, err := list.LimitOf(cfg.MaxBytes)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	cfg.MaxBytes = limit
	if cfg.Every <= 0 {
		cfg.Every = list.DefaultEvery
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Origin{cfg: cfg, quiet: quietTime, openWatch: inotify}, nil
}

// Warnings implements list.Origin.
func (o *Origin) Warnings() []string {
	if why := o.unwatched.Load(); why != nil && *why != "" {
		return []string{*why}
	}
	return nil
}

// Read implements list.Origin. It opens the file, and reads it unless it still has the tag. It
// fails if the file is missing, is not a regular file, cannot be read, is longer than
// Config.MaxBytes, or keeps changing.
func (o *Origin) Read(ctx context.Context, tag string) (list.Copy, error) {
	for range attempts {
		c, err := o.attempt(ctx, tag)
		switch {
		case errors.Is(err, errChanged):
			continue
		case err != nil:
			return list.Copy{}, fmt.Errorf("list %q: %w", o.cfg.Path, err)
		}
		return c, nil
	}
	return list.Copy{}, fmt.Errorf("list %q keeps changing while it is read: "+
		"write a new file and rename it over this one", o.cfg.Path)
}

// attempt reads the file once.
func (o *Origin) attempt(ctx context.Context, tag string) (list.Copy, error) {
	begun := o.cfg.Now()
	file, id, err := openRegular(o.cfg.Path)
	if err != nil {
		return list.Copy{}, err
	}
	defer file.close()
	if tag == id.tag() {
		return list.Copy{Tag: tag, At: begun}, nil
	}
	if id.size > o.cfg.MaxBytes {
		return list.Copy{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", list.ErrTooLong, id.size, o.cfg.MaxBytes)
	}
	data, err := file.readAll(ctx, id.size)
	if err != nil {
		return list.Copy{}, err
	}
	if err := o.untouched(ctx, file, id); err != nil {
		return list.Copy{}, err
	}
	c := list.Copy{Data: data, At: begun}
	switch {
	case id != o.seen:
		o.seen, o.since = id, begun
	case begun.Sub(o.since) >= settleTime:
		c.Tag = id.tag()
	}
	return c, nil
}

// untouched waits until the file has been left alone for a while. It returns errChanged if the file
// has changed or is no longer at its path.
func (o *Origin) untouched(ctx context.Context, file openFile, id identity) error {
	// If the clock of the file system is ahead, this waits for the whole time.
	if wait := o.quiet - max(o.cfg.Now().Sub(id.modified()), 0); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	now, err := file.look()
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	switch named, err := lookAt(o.cfg.Path); {
	case errors.Is(err, fs.ErrNotExist):
		return errChanged
	case err != nil:
		return err
	case now != id || !named.resembles(id):
		return errChanged
	}
	return nil
}
