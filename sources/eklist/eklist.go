// Package eklist reads lists of TPMs and serves look-ups from them.
//
// A list names each TPM by its EK hash, the SHA-256 of the DER
// SubjectPublicKeyInfo of its endorsement key, and may give it a name and
// labels. It has two forms, told apart by the first byte that is not blank. The
// JSON form begins with a brace:
//
//	{"version": 1, "serial": 42, "expires": "2030-01-01T00:00:00Z", "list": "fleet",
//	 "keys": ["<ek hash>", {"hash": "<ek hash>", "name": "us-east-17", "labels": ["rack:12"]}]}
//
// Only "keys" has to be there, and "hash" in an entry that is an object; null
// counts as left out. Field names match exactly, none may be there twice, and
// unknown ones are ignored, with a warning about those that look as if they were
// meant to mean something. Anything else is the text form, a line an entry:
//
//	# hash, then a name or -, then labels
//	<ek hash>
//	<ek hash> us-east-17 rack:12 env:prod
//	<ek hash> -          rack:12
//
// Words are separated by spaces and tabs, a # begins a comment wherever it is,
// and lines end in LF or CRLF. Both forms are UTF-8; a byte order mark in front
// is ignored (RFC 8259, 8.1).
//
// [Parse] takes the whole of a list or nothing of it: a hash or a name that is
// there twice, a value beyond the limits of package sources, a control
// character, a list that is cut off or has something behind it are errors that
// name the place. What it returns is a [Snapshot], which never changes.
package eklist

import (
	"errors"
	"fmt"
	"io"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The limits of a list in bytes.
const (
	// DefaultMaxBytes is the limit where Options.MaxBytes is zero.
	DefaultMaxBytes = 256 << 20
	// MaxBytes is the largest limit that Options.MaxBytes may set.
	MaxBytes = 4<<30 - 1
)

// Options are what a reader of a list may choose. The zero Options will do.
type Options struct {
	// MaxBytes is how long a list may be, from 1 to the constant of that name;
	// zero stands for DefaultMaxBytes. At most one byte more is read.
	MaxBytes int64
	// Size is how long the list is expected to be in bytes, or zero. It saves
	// memory and time where it is about right, and decides nothing: a list may
	// be longer or shorter. A file's size is meant, or the length that a server
	// has announced.
	Size int64
	// AllowEmpty accepts a text without an entry, which may as well be a file
	// that somebody has truncated. A JSON list says itself that it is empty.
	AllowEmpty bool
	// JSON refuses a text: one that was cut off is a text as well.
	JSON bool
}

// A FormatError says that a list is not as its form asks, and where. Its text is
// made for a log: what it quotes of the list is short and escaped.
type FormatError struct {
	// Place is "line 17" in a text. In a JSON list it is "byte 4711" or
	// "keys[123] (byte 4711)"; entries and bytes count from 0, lines from 1.
	Place string
	// Problem is what is wrong there.
	Problem string
}

// Error returns the place and the problem.
func (e *FormatError) Error() string { return e.Place + ": " + e.Problem }

// ErrTooLong is in the error of Parse where a list is longer than
// Options.MaxBytes.
var ErrTooLong = errors.New("the list is too long")

// Parse reads a list to its end. It returns a *FormatError if the list is not as its
// form asks, or FormatErrors if there are several mistakes, an error that is ErrTooLong where it is too long, and
// otherwise an error that wraps that of r.
//
// It does not retain r. Its time is proportional to the length of the list,
// whatever its writer chose, and so is its memory: without names some 50 bytes an
// entry at the peak, of which 44 stay. Where Options.Size is not about right, it
// is 80 on other systems than Linux.
func Parse(r io.Reader, opts Options) (*Snapshot, error) {
	limit := opts.MaxBytes
	switch {
	case limit == 0:
		limit = DefaultMaxBytes
	case limit < 0 || limit > MaxBytes:
		return nil, fmt.Errorf("a limit of %d bytes for a list: choose one from 1 to %d", limit, int64(MaxBytes))
	}
	in := newInput(r, limit)
	first, err := in.first()
	if err != nil {
		return nil, err
	}
	c := collector{size: min(max(opts.Size, 0), limit)}
	if opts.JSON && first != '{' {
		return nil, notJSON(in)
	}
	if first == '{' {
		return parseJSON(in, &c)
	}
	return parseText(in, &c, opts.AllowEmpty)
}

// hashOf is sources.ParseEKHash for bytes.
func hashOf(s []byte) (hash sources.EKHash, err error) {
	err = hash.UnmarshalText(s)
	return hash, err
}
