package ekhashes

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// parseText reads the text format.
func parseText(data []byte, allowEmpty bool) (*Document, error) {
	b := newBuilder(func(line uint32) string { return fmt.Sprintf("line %d", line) }, most(data))
	var mistakes list.FormatErrors
	number := uint32(0)
	for line := range bytes.Lines(data) {
		number++
		problem, whole := b.line(number, line)
		if problem == "" {
			continue
		}
		mistakes = append(mistakes, &list.FormatError{Place: b.place(number), Problem: problem, Line: int(number)})
		if whole {
			return nil, mistakes.Err()
		}
		if len(mistakes) == list.MaxMistakes {
			break
		}
	}
	b.trim()
	d, twice := b.build(list.Header{})
	for _, r := range twice {
		mistakes = append(mistakes, &list.FormatError{
			Place: b.place(r.at), Problem: r.problem(b.place(r.first)), Line: int(r.at),
		})
	}
	if err := mistakes.Err(); err != nil {
		return nil, err
	}
	if d.Len() == 0 && !allowEmpty {
		return nil, &list.FormatError{Place: "line 1", Line: 1, Problem: "no entry, as in a truncated file: " +
			"if it is meant to be empty, allow that in the configuration or write the JSON list {\"keys\": []}"}
	}
	return d, nil
}

// line reads a line. It returns what is wrong with it, or an empty string; whole is true if the
// data is not a list at all.
func (b *builder) line(number uint32, line []byte) (problem string, whole bool) {
	rest, ended := bytes.CutSuffix(line, []byte{'\n'})
	line = bytes.TrimSuffix(rest, []byte{'\r'})
	b.says.reset()
	var hash sources.EKHash
	if hash.UnmarshalText(line) == nil { // like most lines of most long lists
		b.take(number, hash)
		return "", false
	}
	if !utf8.Valid(line) {
		return "not UTF-8", true
	}
	if bytes.ContainsFunc(line, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) {
		return "a control character", false
	}
	line, _, _ = bytes.Cut(line, []byte{'#'})
	n := 0
	for word := range bytes.FieldsFuncSeq(line, func(r rune) bool { return r == ' ' || r == '\t' }) {
		switch n++; {
		case n == 1 && hash.UnmarshalText(word) != nil:
			problem, whole = notHashLine(bytes.TrimSpace(line), word)
			if !ended && len(word) < hex.EncodedLen(len(hash)) && allHex(word) {
				problem += "; the list ends here, and may be cut off"
			}
			return problem, whole
		case n == 2 && string(word) != "-":
			problem = b.says.setName(word)
		case n > 2:
			problem = b.says.addLabel(word)
		}
		if problem != "" {
			return problem, false
		}
	}
	if n > 0 {
		b.take(number, hash)
	}
	return "", false
}

// notHashLine describes a line that does not begin with a hash. It also looks for a hash elsewhere
// in the line, which may be from a log or from the agent's output.
func notHashLine(line, word []byte) (problem string, whole bool) {
	if before, _, ok := around(line); ok && bytes.ContainsAny(before, " \t") {
		return fmt.Sprintf("a hash stands behind %s: write the hash first, then a name or -, then labels",
			list.Quoted(before)), false
	}
	return notHash(word)
}
