//go:build !unix

package devid

import "io/fs"

// strangers returns an empty string: there are no owners and modes as on Unix.
func strangers(fs.FileInfo) string { return "" }
