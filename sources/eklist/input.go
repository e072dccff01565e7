package eklist

import (
	"errors"
	"fmt"
	"io"
)

// blockSize is how much is read at a time, and about the longest line that a
// text may have.
const blockSize = 256 << 10

// input reads in blocks and no further than a limit.
type input struct {
	r    io.Reader
	left int64 // how much more may be read; -1 once that was exceeded
	max  int64
	read int64 // how much was read so far
	err  error // once there is one, io.EOF too, nothing more is read

	// buf[pos:end] is what was read and not yet taken.
	buf      []byte
	pos, end int
}

func newInput(r io.Reader, limit int64) *input {
	return &input{r: r, left: limit, max: limit, buf: make([]byte, blockSize)}
}

// fill moves what is left to the front of the buffer and reads more behind it.
// It reports whether there is more; where there is not, in.err says why.
func (in *input) fill() bool {
	if in.pos > 0 { // not once for each byte that drips in
		in.end = copy(in.buf, in.buf[in.pos:in.end])
		in.pos = 0
	}
	for empty := 0; in.err == nil; {
		n, err := in.r.Read(in.buf[in.end:])
		in.read += int64(n)
		in.left -= int64(n)
		in.end += n
		if empty++; n == 0 && err == nil && empty == 100 {
			err = io.ErrNoProgress
		}
		switch {
		case in.left < 0:
			in.err = fmt.Errorf("%w: more than %d bytes", ErrTooLong, in.max)
		case errors.Is(err, io.EOF):
			in.err = io.EOF
		case err != nil:
			in.err = fmt.Errorf("read the list: %w", err)
		}
		if in.left >= 0 && n > 0 {
			return true
		}
	}
	return false
}

// failed returns why the list could not be read, or nil at its end.
func (in *input) failed() error {
	if errors.Is(in.err, io.EOF) {
		return nil
	}
	return in.err
}

// Read implements io.Reader.
func (in *input) Read(p []byte) (int, error) {
	if in.pos == in.end && !in.fill() {
		return 0, in.err
	}
	n := copy(p, in.buf[in.pos:in.end])
	in.pos += n
	return n, nil
}

// offset is how many bytes were taken so far.
func (in *input) offset() int64 { return in.read - int64(in.end-in.pos) }

// first skips a byte order mark and returns the first byte that is not blank,
// or zero where there is none. It takes the blanks as long as they fill whole
// buffers only, so that lines are still counted rightly in all but such a list.
func (in *input) first() (byte, error) {
	for more := true; more && in.end < 3; {
		more = in.fill()
	}
	if string(in.buf[:min(3, in.end)]) == "\ufeff" {
		in.pos = 3
	}
	for at := in.pos; ; at++ {
		if at == in.end {
			if in.end-in.pos == len(in.buf) {
				return 0, &FormatError{"byte 0", fmt.Sprintf("begins with more than %d blanks", blockSize)}
			}
			at -= in.pos
			if !in.fill() {
				return 0, in.failed()
			}
		}
		switch c := in.buf[at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c, nil
		}
	}
}
