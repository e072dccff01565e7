//go:build !linux

package boltfile

import "os"

// newMemory returns an empty file that nobody else can open.
func newMemory() (*os.File, error) {
	file, err := os.CreateTemp("", "cache-*")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}
