// Package listcache keeps the last accepted list of TPMs in a file, for a source
// whose list is elsewhere: after a restart it serves without the network.
//
// The file is a bbolt database of package boltfile: open only while a method runs,
// replaced as a whole, and used only if its checksum is right. Whatever happens to a
// process or to its disk, the file holds one whole list with all that belongs to it,
// or it counts as none. The checksum finds damage; whoever may write the file may
// write a list.
package listcache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

var (
	// ErrNone is the error of Load if there is no file yet.
	ErrNone = boltfile.ErrNone
	// ErrBusy is the error if another process has locked the file for longer than a
	// call waits: whether it holds a list, and which, is not known then.
	ErrBusy = boltfile.ErrBusy
)

// Meta is what belongs to a cached list besides its entries and its Header.
type Meta struct {
	// ETag and LastModified are the validators of the response that the list
	// came in (RFC 9110, 8.8), or empty.
	ETag, LastModified string
	// Confirmed is when the list was last known to be current. It comes back as
	// it was saved, without a monotonic reading, and may be in the future where
	// the clock was set back.
	Confirmed time.Time
	// Key is the public key that has signed the list, zero where none has.
	Key Key
}

// A Key tells a public key from all others, by a hash of it.
type Key [sha256.Size]byte

// An AheadError says that the file holds a later list than the one that was to be
// saved.
type AheadError struct{ Serial uint64 }

func (e *AheadError) Error() string {
	return fmt.Sprintf("already holds serial %d, which was accepted before; it stays", e.Serial)
}

// A Cache is a file that holds one list. It is safe for concurrent use: calls
// exclude each other, by a lock on the file that other processes see as well.
// A call waits two seconds for that lock at most.
type Cache struct {
	file boltfile.File
	of   [sha256.Size]byte
	// trusted are the keys that may have signed the list; nil where none is to
	// have.
	trusted atomic.Pointer[[]Key]
}

// New returns the Cache in a file, of the list that the strings identify: its
// URL, say, and its name. A file that holds another list counts as none, and
// Save replaces it. Only a hash of the strings is stored. The list has at most
// maxBytes, as eklist.Parse reads it; a file that is longer than any such list needs
// counts as none.
//
// New opens nothing. The directory of path must exist before the first Save;
// beside the file are those of boltfile.Names.
func New(path string, maxBytes int64, of ...string) *Cache {
	var all []byte
	for _, s := range of {
		all = binary.BigEndian.AppendUint64(all, uint64(len(s)))
		all = append(all, s...)
	}
	return &Cache{
		file: boltfile.File{Path: path, Limit: limitFor(maxBytes), Format: format, Bucket: stateBucket},
		of:   sha256.Sum256(all),
	}
}

// Trust says which public keys may have signed the list. A file whose list another
// one has signed counts as none from then on: Load does not return it, and Save
// replaces it whatever its serial, since whoever has stolen a key may give any serial
// to a list. Before the first call, the list is to be one that nobody has signed.
func (c *Cache) Trust(keys ...Key) {
	keys = slices.Clone(keys)
	c.trusted.Store(&keys)
}

func (c *Cache) trusts(key Key) bool {
	if keys := c.trusted.Load(); keys != nil {
		return slices.Contains(*keys, key)
	}
	return key == Key{}
}

// limitFor returns how long the file of a list may be. An entry takes less room in it
// than in any form of a list; bbolt adds a page to each value of 128 KiB and grows the
// file by 16 MiB at a time.
func limitFor(maxBytes int64) int64 { return maxBytes + maxBytes/8 + 32<<20 }

// Load returns the list that was saved last and what belongs to it. With an
// error there is none: ErrNone if there is no file yet; ErrBusy, or the error of ctx,
// if it could not be determined whether there is a list; and otherwise why the file
// does not count, for a warning. It changes nothing.
//
// ctx is looked at now and then; it does not interrupt a disk that hangs.
func (c *Cache) Load(ctx context.Context) (*eklist.Snapshot, Meta, error) {
	list, meta, err := c.load(ctx)
	switch {
	case errors.Is(err, ErrNone):
		return nil, Meta{}, ErrNone
	case err != nil:
		return nil, Meta{}, fmt.Errorf("cache %q: %w", c.file.Path, err)
	}
	return list, meta, nil
}

// Save stores a list, its Header and meta, in place of what is there. When it
// returns without an error, all of that is on the disk; with an error, what was
// there before still is, or all of the list. The new file has mode 0600.
//
// It is an *AheadError if the same list is there with a higher serial, or if the list
// has no serial and the one that is there has one: another process was ahead, and
// the file does not go back. It is an error, too, if the file is of something
// else: it is left as it is.
func (c *Cache) Save(ctx context.Context, list *eklist.Snapshot, meta Meta) error {
	if err := c.save(ctx, list, meta); err != nil {
		return fmt.Errorf("cache %q: %w", c.file.Path, err)
	}
	return nil
}
