//go:build !linux

package boltfile

import "os"

// newMemory returns an empty file that no other process can open.
func newMemory() (*os.File, error) {
	file, err := os.CreateTemp("", "cache-*")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}
