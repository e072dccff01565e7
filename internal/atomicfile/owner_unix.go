//go:build unix

package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// keepOwner gives a file the owner and the group of the file that it replaces: if the server could no longer read
// its list, it would admit nobody.
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

// controls says who, other than root and the user who runs this command, can make a link in a folder lead
// elsewhere. It returns an empty string if nobody can. A user who has given a folder to a group trusts that group;
// root does not.
func controls(folder, link fs.FileInfo) string {
	for _, info := range []fs.FileInfo{link, folder} {
		s, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return "somebody else"
		}
		if s.Uid != 0 && int(s.Uid) != os.Geteuid() {
			return fmt.Sprintf("user %d", s.Uid)
		}
	}
	const group, others = 0o020, 0o002
	switch mode := folder.Mode(); {
	case mode&fs.ModeSticky != 0: // only the owner of a link can replace it
	case mode&others != 0:
		return "every user"
	case mode&group != 0 && os.Geteuid() == 0:
		return "the group of its folder"
	}
	return ""
}

// SyncFolder writes the names in a folder to disk.
func SyncFolder(root *os.Root) error {
	folder, err := root.Open(".")
	if err != nil {
		return err
	}
	err = folder.Sync()
	if errors.Is(err, syscall.EINVAL) { // this file system cannot sync folders
		err = nil
	}
	return errors.Join(err, folder.Close())
}
