package atomicfile

import (
	"io/fs"
	"os"
)

// keepOwner does nothing: a new file has the access rights of its folder.
func keepOwner(*os.File, fs.FileInfo) error { return nil }

// controls returns an empty string: on Windows, only a user with a privilege can make a link.
func controls(_, _ fs.FileInfo) string { return "" }

// SyncFolder does nothing: Windows cannot sync a folder.
func SyncFolder(*os.Root) error { return nil }
