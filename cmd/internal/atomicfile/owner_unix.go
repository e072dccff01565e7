//go:build unix

package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a file the owner and the group of the one that it replaces: a list that its
// server may no longer read would admit nobody.
func keepOwner(file *os.File, old fs.FileInfo) error {
	was, ok := old.Sys().(*syscall.Stat_t)
	info, err := file.Stat()
	if err != nil || !ok {
		return err
	}
	if is, ok := info.Sys().(*syscall.Stat_t); ok && is.Uid == was.Uid && is.Gid == was.Gid {
		return nil
	}
	if err := file.Chown(int(was.Uid), int(was.Gid)); err != nil {
		return fmt.Errorf("keep the owner of the file that is replaced (user %d, group %d): "+
			"run this as that user or as root: %w", was.Uid, was.Gid, err)
	}
	return nil
}

// syncFolder writes to the disk which names a folder has.
func syncFolder(path string) error {
	folder, err := os.Open(path) //nolint:gosec // G304: the caller's
	if err != nil {
		return err
	}
	err = folder.Sync()
	if errors.Is(err, syscall.EINVAL) { // some file systems have no such thing
		err = nil
	}
	return errors.Join(err, folder.Close())
}
