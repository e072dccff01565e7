package eklist

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// preferHugePages asks the kernel to back a table by huge pages (transparent
// hugepages, madvise(2)) before it is written to: look-ups are all over it, and
// with small pages the processor spends more time on finding the page than on
// the hash in it. It is advice on memory that Go owns; where the kernel does not
// follow it, nothing else changes.
func preferHugePages(table []Hash) {
	const page = 2 << 20
	begin := unsafe.Pointer(unsafe.SliceData(table))               //nolint:gosec // the whole of table and no more
	memory := unsafe.Slice((*byte)(begin), len(table)*len(Hash{})) //nolint:gosec // as above
	skip := int(-uintptr(begin) % page)
	if whole := (len(memory) - skip) / page * page; whole > 0 {
		_ = unix.Madvise(memory[skip:skip+whole], unix.MADV_HUGEPAGE)
	}
}
