//go:build unix

package tpm

import (
	"io/fs"
	"syscall"
)

// gidOf returns the group of a file, if that is known.
func gidOf(info fs.FileInfo) (gid uint32, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return stat.Gid, true
}
