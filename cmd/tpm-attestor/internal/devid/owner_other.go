//go:build !unix

package devid

import "io/fs"

// strangers says nothing: there are no owners and modes as on Unix.
func strangers(fs.FileInfo) string { return "" }
