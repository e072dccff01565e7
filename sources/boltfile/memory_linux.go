package boltfile

import (
	"os"

	"golang.org/x/sys/unix"
)

// newMemory returns an empty file in memory that no other process can open (memfd_create(2)).
func newMemory() (*os.File, error) {
	fd, err := unix.MemfdCreate("cache", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "the copy of the cache in memory"), nil
}
