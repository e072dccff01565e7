package atomicfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncAll writes to the disk what a folder holds, with all else on its file system: a million
// files take a moment, and not a million syncs.
func syncAll(path string) error {
	folder, err := os.Open(path) //nolint:gosec // G304: the caller's
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return errors.Join(&os.PathError{Op: "syncfs", Path: path, Err: err}, folder.Close())
	}
	return folder.Close()
}
