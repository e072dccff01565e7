package list

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// A Cache is a file that holds the last good list, so that the list can be served after a restart
// without its origin. The file is managed by package boltfile: it is always replaced as a whole,
// and used only if its checksum is right. It holds the bytes of the list, and its signature, as the
// origin sent them. Both are parsed and verified like those from the origin.
type Cache struct {
	file     boltfile.File
	of       [sha256.Size]byte
	readOnly bool // the file belongs to another process
}

// The file holds a record in JSON, and the list in blocks of blockSize.
const (
	cacheFormat  = "tpm list 3" // version 2 held parsed entries
	cacheBucket  = "tpm list state"
	blocksBucket = "tpm list blocks"
	recordKey    = "record"
	blockSize    = 1 << 20
)

// NewCache returns the cache in the file at path. The strings identify its list, by URL and name,
// for example; a file with another list is ignored. A list has at most maxBytes bytes. NewCache
// opens nothing. The folder of path must exist before the first write. Beside the file there are
// the files of boltfile.Names.
func NewCache(path string, maxBytes int64, of ...string) *Cache {
	var all []byte
	for _, s := range of {
		all = binary.BigEndian.AppendUint64(all, uint64(len(s)))
		all = append(all, s...)
	}
	return &Cache{
		// bbolt adds a page to each block and grows the file by 16 MiB at a time.
		file: boltfile.File{
			Path: path, Limit: maxBytes + maxBytes/8 + 32<<20, Format: cacheFormat, Bucket: cacheBucket,
		},
		of: sha256.Sum256(all),
	}
}

// A record is what the cache stores besides the bytes of the list.
type record struct {
	Of   []byte `json:"of"`
	Size int    `json:"size"` // of the list
	// Serial and HasSerial are the list's. They are stored so that the list need not be parsed to
	// be compared with the next one.
	Serial    uint64    `json:"serial"`
	HasSerial bool      `json:"hasSerial"`
	Signature []byte    `json:"signature"`
	Tag       []byte    `json:"tag"`
	Confirmed time.Time `json:"confirmed"`
}

func (r *record) ahead(of Header) bool { return r.HasSerial && (!of.HasSerial || of.Serial < r.Serial) }

// An aheadError means that the file holds a later list than the one to be written.
type aheadError struct{ serial uint64 }

func (e *aheadError) Error() string {
	return fmt.Sprintf("already holds serial %d, which was accepted before; it stays", e.serial)
}

// errChanged means that the file does not hold the expected list.
var errChanged = errors.New("holds another list by now")

// read returns the list in the file. The error is boltfile.ErrNone if there is no file yet. It is
// boltfile.ErrBusy or the error of ctx if the content is not known. Any other error means that the
// file does not count.
func (c *Cache) read(ctx context.Context) (held Copy, err error) {
	err = c.file.Read(ctx, func(tx *bbolt.Tx) (err error) {
		_, held, err = c.readAll(ctx, tx)
		return err
	})
	if err != nil {
		return Copy{}, c.in(err)
	}
	return held, nil
}

// in adds the name of the file to an error.
func (c *Cache) in(err error) error { return fmt.Errorf("cache %q: %w", c.file.Path, err) }

// write stores a list and its header in the file. If the file holds a later list, write changes
// nothing and returns an *aheadError. header parses the list that the file holds. If that fails,
// the list does not count, and neither does its serial.
func (c *Cache) write(ctx context.Context, h Header, list Copy, header func(Copy) (Header, error)) error {
	return c.replace(ctx, func(tx *bbolt.Tx) error {
		r, err := c.readRecord(tx)
		if err != nil || !r.ahead(h) {
			return err
		}
		_, held, err := c.readAll(ctx, tx)
		if err != nil {
			return err
		}
		there, err := header(held)
		if err != nil || there.Serial != r.Serial || there.HasSerial != r.HasSerial {
			return nil //nolint:nilerr // what does not count is replaced
		}
		return &aheadError{there.Serial}
	}, func(db *bbolt.DB) error {
		return c.fill(ctx, db, record{
			Serial: h.Serial, HasSerial: h.HasSerial, Signature: list.Signature,
			Tag: []byte(list.Tag), Confirmed: list.At,
		}, list.Data)
	})
}

// touch updates the time of confirmation and the tag if the file holds the list with this digest.
// Otherwise it returns errChanged.
func (c *Cache) touch(ctx context.Context, digest [sha256.Size]byte, confirmed time.Time, tag string) error {
	var r record
	var held Copy
	return c.replace(ctx, func(tx *bbolt.Tx) (err error) {
		r, held, err = c.readAll(ctx, tx)
		return err
	}, func(db *bbolt.DB) error {
		if sha256.Sum256(held.Data) != digest {
			return errChanged
		}
		r.Confirmed, r.Tag = confirmed, []byte(tag)
		return c.fill(ctx, db, r, held.Data)
	})
}

// disowned is the modification time of a file that does not hold the list served by its process.
var disowned = time.Unix(0, 0)

// stamp sets the file's modification time, which followers of this process read: to when the list
// in the file was confirmed, or to disowned. If that fails, because the file is gone or the file
// system is read-only, a follower takes the list to be older than it is, or learns nothing.
func (c *Cache) stamp(at time.Time) {
	if !c.readOnly {
		_ = c.file.Stamp(at)
	}
}

func (c *Cache) replace(ctx context.Context, check func(*bbolt.Tx) error, fill func(*bbolt.DB) error) error {
	if c.readOnly {
		return nil
	}
	if err := c.file.Write(ctx, check, fill); err != nil {
		return c.in(err)
	}
	return nil
}

// readAll reads the content of a file whose checksum is right.
func (c *Cache) readAll(ctx context.Context, tx *bbolt.Tx) (record, Copy, error) {
	r, err := c.readRecord(tx)
	if err != nil {
		return record{}, Copy{}, err
	}
	data, err := readBlocks(ctx, tx, r.Size)
	if err != nil {
		return record{}, Copy{}, err
	}
	return r, Copy{Data: data, Signature: r.Signature, Tag: string(r.Tag), At: r.Confirmed}, nil
}

// readRecord reads the record of a file whose checksum is right.
func (c *Cache) readRecord(tx *bbolt.Tx) (r record, err error) {
	if err := json.Unmarshal(tx.Bucket([]byte(cacheBucket)).Get([]byte(recordKey)), &r); err != nil {
		return record{}, boltfile.Unusable("its record: %v", err)
	}
	switch {
	case !bytes.Equal(r.Of, c.of[:]):
		return record{}, boltfile.Unusable("holds the list of another configuration")
	case r.Size < 0 || int64(r.Size) > tx.Size():
		return record{}, boltfile.Unusable("holds no list of %d bytes", r.Size)
	}
	return r, nil
}

// readBlocks reads a list of size bytes.
func readBlocks(ctx context.Context, tx *bbolt.Tx, size int) ([]byte, error) {
	blocks := tx.Bucket([]byte(blocksBucket))
	if blocks == nil {
		return nil, boltfile.Unusable("holds no list")
	}
	data := make([]byte, 0, size)
	if err := blocks.ForEach(func(_, block []byte) error {
		if len(block) > size-len(data) {
			return boltfile.Unusable("holds more than a list of %d bytes", size)
		}
		data = append(data, block...)
		return ctx.Err()
	}); err != nil {
		return nil, err
	}
	if len(data) != size {
		return nil, boltfile.Unusable("holds %d bytes of a list of %d", len(data), size)
	}
	return data, nil
}

// fill writes a new file.
func (c *Cache) fill(ctx context.Context, db *bbolt.DB, r record, data []byte) error {
	r.Of, r.Size, r.Confirmed = c.of[:], len(data), r.Confirmed.Round(0).UTC()
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	for key := uint64(0); len(data) > 0; key++ {
		n := min(len(data), blockSize)
		if err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte(blocksBucket))
			if err != nil {
				return err
			}
			return b.Put(binary.BigEndian.AppendUint64(nil, key), data[:n])
		}); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		data = data[n:]
	}
	return db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(cacheBucket)).Put([]byte(recordKey), value)
	})
}
