package atomicfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncAll writes to the disk what a folder holds, with all else on its file system: a million
// files take a moment, and not a million syncs.
func syncAll(root *os.Root) error {
	folder, err := root.Open(".")
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return errors.Join(&os.PathError{Op: "syncfs", Path: root.Name(), Err: err}, folder.Close())
	}
	return folder.Close()
}
