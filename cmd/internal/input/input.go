// Package input reads the files that an operator names on the command line.
package input

import (
	"fmt"
	"io"
	"os"
)

// Open opens a file, or returns stdin if the name is "-".
func Open(name string, stdin io.Reader) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(stdin), nil
	}
	return os.Open(name) //nolint:gosec // G304: the operator names the file
}

// Read reads a file, or stdin if the name is "-". If it is longer than most bytes, that is an
// error, and nothing is returned: a configuration that is cut off lacks rules.
func Read(name string, stdin io.Reader, most int64) ([]byte, error) {
	from, err := Open(name, stdin)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }() // it was only read
	content, err := io.ReadAll(io.LimitReader(from, most+1))
	if err == nil && int64(len(content)) > most {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, most)
	}
	return content, err
}
