package ekhashes

import (
	"bytes"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// Options change what Parse accepts.
type Options struct {
	// AllowEmpty accepts a text list without entries, which could also be a truncated file. A JSON
	// list states that it is empty.
	AllowEmpty bool
	// JSON refuses text lists: the first half of a text list is a text list.
	JSON bool
}

// mark is a byte order mark.
const mark = "\ufeff"

// Parse reads a whole list. It returns a *list.FormatError for a list that breaks the rules of its
// format, or list.FormatErrors if there are several mistakes.
//
// It does not retain data. Its time and memory are proportional to the length of the list, whatever
// its author has chosen. A parsed list takes 40 bytes for each entry without a name and labels.
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

// most returns the largest possible number of entries.
func most(data []byte) int { return len(data)/(2*len(sources.EKHash{})+1) + 1 }

// isUTF16 reports whether a list begins like UTF-16. No list contains a zero byte.
func isUTF16(data []byte) bool {
	return bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) ||
		len(data) > 1 && (data[0] == 0) != (data[1] == 0)
}
