package list

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// followEvery is the longest interval at which a list that follows a server's is loaded.
const followEvery = 2 * time.Second

// Follow makes l follow what a running server serves. If the origin needs the network, l reads the
// server's cache instead, whoever owns the file, and never writes it: the server writes a list into
// its cache before it serves it. Otherwise l reads the same origin as the server, every followEvery.
// Follow must be called before the first Load.
func (l *List[T]) Follow() {
	l.cfg.Every = min(l.cfg.Every, followEvery)
	if !l.cfg.Remote {
		return
	}
	l.origin = &followed{Origin: l.origin, cache: l.cfg.Cache}
	if l.cfg.Cache != nil {
		l.cfg.What = fmt.Sprintf("cache %q", l.cfg.Cache.file.Path)
		l.cfg.Cache = nil
	}
}

// followed is an origin that reads the cache of another process. It is not safe for concurrent use.
type followed struct {
	Origin             // for its Warnings
	cache  *Cache      // nil if there is none
	file   fs.FileInfo // the file that was last read; nil if none was
	at     time.Time   // when that file's list was confirmed
}

var (
	errNoCache = errors.New("has no cache_path, so nobody but the server knows what it serves: " +
		"set cache_path, in a folder that this user may read")
	errNotWritten = errors.New("the server could not write the list that it serves: its log says why (a full disk?)")
	errNoCacheYet = errors.New("the server has not written it yet, or cannot")
)

// followedTag is the tag of every copy. It only says that there is a copy: Read compares the files.
const followedTag = "followed"

// Read implements Origin.
func (f *followed) Read(ctx context.Context, tag string) (Copy, error) {
	if f.cache == nil {
		return Copy{}, errNoCache
	}
	now, err := os.Stat(f.cache.file.Path)
	if err == nil && now.ModTime().Equal(disowned) {
		return Copy{}, f.cache.in(errNotWritten)
	}
	if err == nil && tag != "" && f.same(now) {
		return Copy{Tag: followedTag, At: f.at}, nil
	}
	examined := *f.cache
	examined.readOnly, examined.file.AnyOwner = true, true
	c, err := examined.read(ctx)
	if errors.Is(err, boltfile.ErrNone) {
		return Copy{}, f.cache.in(errNoCacheYet)
	}
	if err != nil {
		return Copy{}, err
	}
	if now != nil && now.ModTime().After(c.At) { // see Cache.stamp
		c.At = now.ModTime()
	}
	// If the file was replaced after Stat, now is the older file, and the next Read reads again.
	f.file, f.at, c.Tag = now, c.At, followedTag
	return c, nil
}

// same reports whether the cache is still the file that was read last. A server replaces its cache as a
// whole, so a new list is a new file.
func (f *followed) same(now fs.FileInfo) bool {
	return f.file != nil && os.SameFile(f.file, now) && f.file.ModTime().Equal(now.ModTime()) &&
		f.file.Size() == now.Size()
}
