//go:build !linux

package atomicfile

import (
	"io/fs"
	"os"
	"path/filepath"
)

// syncAll writes to the disk what a folder holds.
func syncAll(path string) error {
	return filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			_ = file.Close()
			return err
		}
		return file.Close()
	})
}
