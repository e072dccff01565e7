//go:build unix

package devid

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// strangers says why somebody other than root and the user who runs this could have read or written a
// file; nothing if nobody could.
func strangers(info fs.FileInfo) string {
	const others = 0o077
	s, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return "whose it is is not known"
	case s.Uid != 0 && int(s.Uid) != os.Geteuid():
		return fmt.Sprintf("it is of user %d", s.Uid)
	case info.Mode()&others != 0:
		return fmt.Sprintf("its mode is %#o, not 0600", info.Mode().Perm())
	}
	return ""
}
