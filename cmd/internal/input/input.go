// Package input reads the files that an operator names on the command line.
package input

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// Open opens a file, or returns stdin if the name is "-". If stdin is nil, that name is refused.
func Open(name string, stdin io.Reader) (io.ReadCloser, error) {
	switch {
	case name == "-" && stdin == nil:
		return nil, errors.New("the standard input is not read for this: name a file")
	case name == "-":
		return io.NopCloser(stdin), nil
	}
	return os.Open(name) //nolint:gosec // G304: the operator names the file
}

// Read reads a file, or stdin if the name is "-". If it is longer than most bytes, Read returns an error and no
// content: a configuration that was cut off would lack rules.
func Read(name string, stdin io.Reader, most int64) ([]byte, error) {
	from, err := Open(name, stdin)
	if err != nil {
		return nil, err
	}
	defer func() { _ = from.Close() }() // it was only read
	content, err := ReadAll(from, most)
	if errors.Is(err, ErrTooLong) {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, most)
	}
	return content, err
}

// ErrTooLong is the error of ReadAll if there is more to read.
var ErrTooLong = errors.New("too long")

// ReadAll reads at most most bytes, to the end. For a file, it allocates no more than the file's length.
func ReadAll(from io.Reader, most int64) ([]byte, error) {
	var b bytes.Buffer
	if file, ok := from.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() {
			b.Grow(int(min(info.Size(), most)) + bytes.MinRead)
		}
	}
	_, err := b.ReadFrom(io.LimitReader(from, most+1))
	if err == nil && int64(b.Len()) > most {
		err = ErrTooLong
	}
	if err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
