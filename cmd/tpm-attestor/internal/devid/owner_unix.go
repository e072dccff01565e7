//go:build unix

package devid

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// strangers says why a user other than root and the user who runs this command could have read or written a file.
// It returns an empty string if no other user could.
func strangers(info fs.FileInfo) string {
	const others = 0o077
	s, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return "its owner is not known"
	case s.Uid != 0 && int(s.Uid) != os.Geteuid():
		return fmt.Sprintf("it belongs to user %d", s.Uid)
	case info.Mode()&others != 0:
		return fmt.Sprintf("its mode is %#o, not 0600", info.Mode().Perm())
	}
	return ""
}
