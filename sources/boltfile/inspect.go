package boltfile

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// inspect copies a file and returns nil if the copy is intact. Otherwise it returns an
// *UnusableError if the file is a damaged or outdated cache, which may be replaced, and ErrForeign
// if it is not known to be a cache.
func (f File) inspect(ctx context.Context, file *os.File, to io.Writer) error {
	err := f.verify(ctx, file, to)
	if unusable := (*UnusableError)(nil); !errors.As(err, &unusable) {
		return err
	}
	ours, oursErr := f.isOurs(ctx, file)
	switch {
	case oursErr != nil:
		return oursErr
	case !ours:
		return ErrForeign
	}
	return err
}

// verify returns an *UnusableError if a file does not count.
func (f File) verify(ctx context.Context, file *os.File, to io.Writer) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at it: %w", err)
	}
	const othersWrite = 0o022
	owner, size := ownerOf(info), info.Size()
	switch user := os.Geteuid(); {
	case size == 0:
		return Unusable("is empty")
	case owner != int64(user) && !f.AnyOwner:
		return Unusable("belongs to user %d, and this server runs as user %d: what it holds is not used, "+
			"since another user may have written it", owner, user)
	case info.Mode()&othersWrite != 0:
		return Unusable("may be written by other users (mode %#o): what it holds is not used, "+
			"since one of them may have written it; chmod go-w it, or have it replaced", info.Mode().Perm())
	case size > f.Limit:
		return Unusable("has %d bytes, more than its limit of %d bytes", size, f.Limit)
	case size < 2*pageSize+sha256.Size:
		return damaged()
	}
	return f.verifyChecksum(ctx, file, size-sha256.Size, to)
}

func (f File) verifyChecksum(ctx context.Context, file *os.File, size int64, to io.Writer) error {
	sum, err := f.checksum(ctx, file, size, to)
	if err == nil {
		var there [sha256.Size]byte
		if _, err = file.ReadAt(there[:], size); err == nil && sum == there {
			return nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errCopy):
		return err
	case err != nil:
		return Unusable("cannot be read to its end: %v", err)
	}
	return damaged()
}

func damaged() error {
	return Unusable("does not have the checksum that it was written with: " +
		"it is damaged, or from another release of this plugin, and will be replaced")
}

// bbolt's meta pages, the first two of a file, have a header of 16 bytes and then this number,
// in the byte order of the machine.
const (
	metaMagic  = 0xed0cdaed
	headerSize = 16
)

// isOurs reports whether a file that does not count may be replaced: it is a bbolt file that
// contains the name of our bucket, or a bbolt file with too few pages to hold anything, or it is
// empty or all zeros. It reads at most Limit bytes, and interprets none of them as page numbers.
func (f File) isOurs(ctx context.Context, file *os.File) (bool, error) {
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	head := make([]byte, 2*pageSize)
	if _, err := file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read its beginning: %w", err)
	}
	database := isMeta(head) || isMeta(head[pageSize:])
	const freshPages = 4 // of a new database: two meta pages, the free list, an empty leaf
	if database && info.Size() < (freshPages+1)*pageSize {
		return true, nil
	}
	found, zero := false, info.Size() <= f.Limit
	var seam []byte // the end of a block and the beginning of the next
	err = eachBlock(ctx, file, min(info.Size(), f.Limit), func(block []byte) {
		seam = append(seam, block[:min(len(block), len(f.Bucket))]...)
		found = found || bytes.Contains(seam, []byte(f.Bucket)) || bytes.Contains(block, []byte(f.Bucket))
		seam = append(seam[:0], block[max(0, len(block)-len(f.Bucket)):]...)
		zero = zero && len(bytes.Trim(block, "\x00")) == 0
	})
	return database && found || zero && err == nil, err
}

func isMeta(page []byte) bool { return binary.NativeEndian.Uint32(page[headerSize:]) == metaMagic }

// eachBlock calls f with the first bytes of a file, a block at a time.
func eachBlock(ctx context.Context, file io.ReaderAt, size int64, f func(block []byte)) error {
	block := make([]byte, min(size, 1<<20))
	for at := int64(0); at < size; at += int64(len(block)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		block = block[:min(size-at, int64(len(block)))]
		if _, err := file.ReadAt(block, at); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", len(block), at, err)
		}
		f(block)
	}
	return nil
}
