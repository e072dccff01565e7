package eklist

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// preferHugePages asks the kernel to back a table by huge pages (transparent
// hugepages, madvise(2)) before it is written to: look-ups are all over it, and
// with small pages the processor spends more time on finding the page than on
// the hash in it. It is advice on memory that Go owns; where the kernel does not
// follow it, nothing else changes.
func preferHugePages(table []sources.EKHash) { advise(table, 2<<20, unix.MADV_HUGEPAGE) }

// giveBack returns to the kernel the memory of keys that are not needed any more,
// before the collector of garbage comes to it. They are zero from then on, or what
// they were.
func giveBack(keys []sources.EKHash) { advise(keys, os.Getpagesize(), unix.MADV_DONTNEED) }

// advise gives advice on the whole pages in a slice.
func advise(keys []sources.EKHash, page, advice int) {
	begin := unsafe.Pointer(unsafe.SliceData(keys))                         //nolint:gosec // the whole of keys and no more
	memory := unsafe.Slice((*byte)(begin), len(keys)*len(sources.EKHash{})) //nolint:gosec // as above
	skip := int(-uintptr(begin) % uintptr(page))
	if whole := (len(memory) - skip) / page * page; whole > 0 {
		_ = unix.Madvise(memory[skip:skip+whole], advice)
	}
}
