package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// The layout of a bbolt file, version 2: pages, of which the first two are meta
// pages. All numbers are in the byte order of the machine.
const (
	PageSize   = 4096
	headerSize = 16 // of a page: id u64, flags u16, count u16, overflow u32
	elemSize   = 16
	metaSize   = 64

	metaMagic   = 0xed0cdaed
	metaVersion = 2

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketElem = 0x01

	noFreelist = ^uint64(0)
	// maxDepth is more than the depth of any tree that this package makes.
	maxDepth = 32
)

// An UnusableError says why a file holds nothing of use, so that it may be
// replaced.
type UnusableError struct{ Problem string }

func (e *UnusableError) Error() string { return e.Problem }

// Damaged returns an *UnusableError for a file that is not as it was written.
func Damaged(format string, args ...any) error {
	return &UnusableError{"is damaged: " + fmt.Sprintf(format, args...)}
}

// ErrForeign is about a file that somebody else may miss: it is not to be replaced.
var ErrForeign = errors.New("belongs to something else; choose another cache_path, or remove the file")

// Inspect reports an error unless a file is a bbolt database that is whole in
// its structure: what is mapped and followed by pointers has to end.
//
// It reads the file as any other, so that one that is cut short, or a disk that
// fails, is an error and no fault. The error is an *UnusableError where the file is,
// or was, a database that may be replaced, and ErrForeign where it never was one.
func Inspect(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return Damaged("it is empty")
	}
	m, err := newestMeta(file)
	if err != nil {
		return err
	}
	if m.pageSize != PageSize || m.freelist == noFreelist {
		return ErrForeign
	}
	if have := uint64(info.Size()) / PageSize; m.pages > have {
		return Damaged("it was cut short, from %d pages to %d", m.pages, have)
	}
	in := inspector{file: file, seen: make([]bool, m.pages)}
	if err := errors.Join(in.mark(0, 0), in.mark(1, 0)); err != nil {
		return err
	}
	// First the tree: no page that it has may be free.
	if err := in.tree(m.root, 0); err != nil {
		return err
	}
	return in.freelist(m.freelist)
}

type metaPage struct {
	pageSize                    uint32
	root, freelist, pages, txid uint64
}

// newestMeta returns the meta page that counts: of those that are whole the one
// of the later transaction.
func newestMeta(file io.ReaderAt) (metaPage, error) {
	var newest *metaPage
	for page := range int64(2) {
		buf := make([]byte, metaSize)
		if _, err := file.ReadAt(buf, page*PageSize+headerSize); err != nil {
			continue
		}
		order := binary.NativeEndian
		sum := fnv.New64a()
		sum.Write(buf[:56])
		if order.Uint32(buf) != metaMagic || order.Uint32(buf[4:]) != metaVersion ||
			order.Uint64(buf[56:]) != sum.Sum64() {
			continue
		}
		m := metaPage{
			pageSize: order.Uint32(buf[8:]),
			root:     order.Uint64(buf[16:]),
			freelist: order.Uint64(buf[32:]),
			pages:    order.Uint64(buf[40:]),
			txid:     order.Uint64(buf[48:]),
		}
		if newest == nil || m.txid > newest.txid {
			newest = &m
		}
	}
	if newest == nil {
		return metaPage{}, notWhole(file)
	}
	return *newest, nil
}

// notWhole returns what a file is that has no whole meta page. It was a database
// where one of the two still says so, or where nothing is left of either: what a
// machine that lost its power leaves may be zeros. Any other file is one that
// somebody has named by mistake.
func notWhole(file io.ReaderAt) error {
	buf := make([]byte, 2*PageSize)
	n, err := file.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Damaged("read its first two pages: %v", err)
	}
	for page := range 2 {
		if binary.NativeEndian.Uint32(buf[page*PageSize+headerSize:]) == metaMagic {
			return Damaged("neither of its first two pages is whole")
		}
	}
	if bytes.Count(buf[:n], []byte{0}) != n {
		return ErrForeign
	}
	return Damaged("its first two pages are empty")
}

// inspector walks through a file. It holds one page's elements at a time.
type inspector struct {
	file io.ReaderAt
	seen []bool // by page
}

// mark notes that a page, and so many behind it, are in use.
func (in *inspector) mark(id, overflow uint64) error {
	pages := uint64(len(in.seen))
	if id >= pages || overflow >= pages-id {
		return Damaged("it refers to page %d of %d", id+overflow, pages)
	}
	for i := id; i <= id+overflow; i++ {
		if in.seen[i] {
			return Damaged("page %d is used twice", i)
		}
		in.seen[i] = true
	}
	return nil
}

// A span is a page, or one inside of a value, whose elements are as many as its
// length has room for.
type span struct {
	flags    uint16
	at, size int64  // in the file, and with what overflows
	elements []byte // of elemSize each
}

// page reads the header and the elements of a page, and marks it.
func (in *inspector) page(id uint64) (span, error) {
	if id >= uint64(len(in.seen)) {
		return span{}, Damaged("it refers to page %d of %d", id, len(in.seen))
	}
	header, err := in.read(int64(id)*PageSize, headerSize)
	if err != nil {
		return span{}, err
	}
	if self := binary.NativeEndian.Uint64(header); self != id {
		return span{}, Damaged("page %d says that it is page %d", id, self)
	}
	overflow := uint64(binary.NativeEndian.Uint32(header[12:]))
	if err := in.mark(id, overflow); err != nil {
		return span{}, err
	}
	return in.span(header, int64(id)*PageSize, int64(overflow+1)*PageSize)
}

// span reads the elements behind a header.
func (in *inspector) span(header []byte, at, size int64) (span, error) {
	s := span{flags: binary.NativeEndian.Uint16(header[8:]), at: at, size: size}
	if s.flags == freelistPage {
		return s, nil
	}
	n := int64(binary.NativeEndian.Uint16(header[10:])) * elemSize
	if n > size-headerSize {
		return span{}, Damaged("a page has more elements than room")
	}
	var err error
	s.elements, err = in.read(at+headerSize, n)
	return s, err
}

func (in *inspector) read(at, n int64) ([]byte, error) {
	buf := make([]byte, n)
	if _, err := in.file.ReadAt(buf, at); err != nil {
		return nil, Damaged("read %d bytes at %d: %v", n, at, err)
	}
	return buf, nil
}

// tree looks at the pages of a bucket.
func (in *inspector) tree(id uint64, depth int) error {
	if depth > maxDepth {
		return Damaged("its pages are nested too deep")
	}
	s, err := in.page(id)
	if err != nil {
		return err
	}
	switch s.flags {
	case branchPage:
		return in.branch(s, depth)
	case leafPage:
		return in.leaf(s, depth)
	}
	return Damaged("page %d has the flags %#x", id, s.flags)
}

func (in *inspector) branch(s span, depth int) error {
	if len(s.elements) == 0 {
		return Damaged("a branch without a page")
	}
	for at := 0; at < len(s.elements); at += elemSize {
		e := s.elements[at:]
		pos, key := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		if !s.holds(at, pos, key, 0) {
			return Damaged("a key is outside of its page")
		}
		if err := in.tree(binary.NativeEndian.Uint64(e[8:]), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (in *inspector) leaf(s span, depth int) error {
	for at := 0; at < len(s.elements); at += elemSize {
		e := s.elements[at:]
		flags, pos := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		key, value := binary.NativeEndian.Uint32(e[8:]), binary.NativeEndian.Uint32(e[12:])
		if !s.holds(at, pos, key, value) {
			return Damaged("a value is outside of its page")
		}
		switch flags {
		case 0:
		case bucketElem:
			from := s.at + headerSize + int64(at) + int64(pos) + int64(key)
			if err := in.bucket(from, int64(value), depth+1); err != nil {
				return err
			}
		default:
			return Damaged("a value has the flags %#x", flags)
		}
	}
	return nil
}

// holds reports whether a key and a value are where an element at some offset
// says, between the elements and the end of the span.
func (s span) holds(at int, pos, key, value uint32) bool {
	begin := int64(at) + int64(pos)
	return begin >= int64(len(s.elements)) && begin+int64(key)+int64(value) <= s.size-headerSize
}

// bucket looks at a value that is a bucket: root u64, sequence u64, and where
// root is zero a leaf of its own, as a page.
func (in *inspector) bucket(at, size int64, depth int) error {
	const refSize = 16
	if size < refSize {
		return Damaged("a bucket is cut off")
	}
	ref, err := in.read(at, refSize)
	if err != nil {
		return err
	}
	if root := binary.NativeEndian.Uint64(ref); root != 0 {
		return in.tree(root, depth)
	}
	if size < refSize+headerSize {
		return Damaged("a bucket is cut off")
	}
	header, err := in.read(at+refSize, headerSize)
	if err != nil {
		return err
	}
	s, err := in.span(header, at+refSize, size-refSize)
	if err != nil {
		return err
	}
	if s.flags != leafPage || depth > maxDepth {
		return Damaged("a bucket has the flags %#x", s.flags)
	}
	return in.leaf(s, depth)
}

// freelist looks at the page that lists those which may be written over.
func (in *inspector) freelist(id uint64) error {
	s, err := in.page(id)
	if err != nil {
		return err
	}
	if s.flags != freelistPage {
		return Damaged("page %d has the flags %#x", id, s.flags)
	}
	all, err := in.read(s.at, s.size)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	n, ids := uint64(order.Uint16(all[10:])), all[headerSize:]
	if n == 0xffff {
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return Damaged("it has more free pages than room to list them")
	}
	for i := range n {
		if err := in.mark(order.Uint64(ids[8*i:]), 0); err != nil {
			return err
		}
	}
	return nil
}
