package ekhashes

import (
	"bytes"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// Options are what a reader of a list may choose.
type Options struct {
	// AllowEmpty accepts a text without an entry, which may as well be a file that
	// somebody has truncated. A JSON list says itself that it is empty.
	AllowEmpty bool
	// JSON refuses a text: the first half of a text list is a text list.
	JSON bool
}

// mark is a byte order mark.
const mark = "\ufeff"

// Parse reads a whole list. It returns a *list.FormatError if the list is not as its form
// asks, or list.FormatErrors if there are several mistakes.
//
// It does not retain data. Its time and its memory are proportional to the length of
// the list, whatever its writer chose; a list serves from 40 bytes an entry without a
// name.
func Parse(data []byte, opts Options) (*Document, error) {
	if isUTF16(data) {
		return nil, &list.FormatError{Place: "line 1", Line: 1, Problem: "UTF-16, as PowerShell and some programs on " +
			"Windows write it: save the list as UTF-8"}
	}
	data = bytes.TrimPrefix(data, []byte(mark))
	switch begin := bytes.TrimLeft(data, " \t\r\n"); {
	case bytes.HasPrefix(begin, []byte("{")):
		return parseJSON(data)
	case opts.JSON:
		return nil, notJSON(begin)
	}
	return parseText(data, opts.AllowEmpty)
}

// most returns how many entries a list may have at most.
func most(data []byte) int { return len(data)/(2*len(sources.EKHash{})+1) + 1 }

// isUTF16 reports whether a list begins like a text in UTF-16. No list has a zero byte.
func isUTF16(data []byte) bool {
	return bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) ||
		len(data) > 1 && (data[0] == 0) != (data[1] == 0)
}
