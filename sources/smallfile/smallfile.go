// Package smallfile reads the small files that an operator names in a source's configuration:
// keys, certificates, tokens, data source names.
//
// Editors on Windows put a byte order mark at the beginning of a text. This package removes it, so
// that the parsers of such files need not.
package smallfile

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Read returns the content of a regular file of at most limit bytes, without a byte order mark at
// its beginning. It follows symbolic links. A longer file, and anything but a regular file, is an
// error; Read never waits for the writer of a FIFO. It is safe for concurrent use.
func Read(path string, limit int64) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // G304: the operator names it
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%q is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("%q is longer than %d bytes", path, limit)
	}
	return TrimMark(data), nil
}

// TrimMark returns data without a byte order mark (RFC 3629, 6) at its beginning. It is for content
// that was not read by Read.
func TrimMark(data []byte) []byte { return bytes.TrimPrefix(data, []byte("\ufeff")) }
