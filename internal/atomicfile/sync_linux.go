package atomicfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncAll writes the content of a folder to disk, with everything else on its file system: for a million files that
// is much faster than a sync of each.
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
