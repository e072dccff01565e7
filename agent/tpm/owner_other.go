//go:build !unix

package tpm

import "io/fs"

func gidOf(fs.FileInfo) (gid uint32, ok bool) { return 0, false }
