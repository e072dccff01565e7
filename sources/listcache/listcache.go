// Package listcache keeps the last accepted list of TPMs in a file, for a source
// whose list is elsewhere: after a restart it serves without the network.
//
// The file is a bbolt database that is open only while a method runs, so that
// processes may share it in turn. Whatever happens to a process or to its disk,
// the file holds one whole list with all that belongs to it, or it is found out
// to hold none: Load verifies the structure of the file before it is mapped, and
// then a digest of all that it says. The digest finds damage; whoever may write the
// file may write a list.
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

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// ErrNone is the error of Load where there is no file yet. All others say why a
// file that is there was not used.
var ErrNone = errors.New("nothing is cached yet")

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
	path string
	of   [sha256.Size]byte
	memo memo
	// trusted are the keys that may have signed the list; nil where none is to
	// have.
	trusted atomic.Pointer[[]Key]
}

// New returns the Cache in a file, of the list that the strings identify: its
// URL, say, and its name. A file that holds another list counts as none, and
// Save replaces it. Only a hash of the strings is stored.
//
// New opens nothing. The directory of path must exist before the first Save;
// next to the file, Save writes one that has its name and ".new".
func New(path string, of ...string) *Cache {
	var all []byte
	for _, s := range of {
		all = binary.BigEndian.AppendUint64(all, uint64(len(s)))
		all = append(all, s...)
	}
	return &Cache{path: path, of: sha256.Sum256(all)}
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

// Load returns the list that was saved last and what belongs to it. With an
// error there is none: ErrNone where there is no file yet, and otherwise why the
// file was not used, for a warning. It changes nothing.
//
// ctx is looked at now and then; it does not interrupt a disk that hangs.
func (c *Cache) Load(ctx context.Context) (*eklist.Snapshot, Meta, error) {
	list, meta, err := c.load(ctx)
	switch {
	case errors.Is(err, ErrNone):
		return nil, Meta{}, err
	case err != nil:
		return nil, Meta{}, fmt.Errorf("cache %q: %w", c.path, err)
	}
	return list, meta, nil
}

// Save stores next, its Header and meta, in place of what is there. When it
// returns without an error, all of that is on the disk; with an error, what was
// there before still is, or all of next.
//
// previous may be nil. Where it is what this Cache has loaded or saved last, the
// file still holds it, and few entries differ, only these are written; where none
// does, only Header and meta. Any other cache, and one that is damaged, is replaced
// by a new one, which has mode 0600.
//
// It is an *AheadError where the same list is there with a higher serial, or next
// has no serial and the list that is there has one: another process was ahead, and
// the file does not go back. It is an error, too, where the file is of something
// else: it is left as it is.
func (c *Cache) Save(ctx context.Context, previous, next *eklist.Snapshot, meta Meta) error {
	if err := c.save(ctx, previous, next, meta); err != nil {
		return fmt.Errorf("cache %q: %w", c.path, err)
	}
	return nil
}

// Touch stores meta for a list that was found to be current still, as Save does
// where nothing differs: should the file hold anything else by now, or be gone,
// the list is written again.
func (c *Cache) Touch(ctx context.Context, current *eklist.Snapshot, meta Meta) error {
	return c.Save(ctx, current, current, meta)
}
