package list

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// What the formats of all documents have in common: how mistakes are reported, how a time is
// written, and what a label may be.

// A FormatError describes a mistake in the format of a list, and its place. It can be logged: what
// it quotes from the list is short and escaped.
type FormatError struct {
	// Place is "line 17" in a text list. In JSON it is "byte 4711" or "keys[123] (byte 4711)".
	// Entries and bytes count from 0, lines from 1.
	Place string
	// Problem is what is wrong there.
	Problem string
	// Line is the line of Place, from 1; 0 if it is not known.
	Line int
}

// Error returns the place and the problem.
func (e *FormatError) Error() string { return e.Place + ": " + e.Problem }

// MaxMistakes is the maximum number of mistakes that an error names.
const MaxMistakes = 20

// FormatErrors are the first mistakes in a list that has several.
type FormatErrors []*FormatError

// Error returns all of them in one line.
func (e FormatErrors) Error() string {
	texts := make([]string, len(e))
	for i, one := range e {
		texts[i] = one.Error()
	}
	all := strings.Join(texts, "; ")
	if len(e) >= MaxMistakes {
		all += fmt.Sprintf("; there may be more than these %d mistakes", len(e))
	}
	return all
}

// Unwrap returns the mistakes.
func (e FormatErrors) Unwrap() []error {
	all := make([]error, len(e))
	for i, one := range e {
		all[i] = one
	}
	return all
}

// Err returns nil if there are no mistakes, a *FormatError if there is one, and otherwise the first
// mistakes as FormatErrors, in the order of their lines.
func (e FormatErrors) Err() error {
	switch len(e) {
	case 0:
		return nil
	case 1:
		return e[0]
	}
	slices.SortStableFunc(e, func(a, b *FormatError) int { return cmp.Compare(a.Line, b.Line) })
	return e[:min(len(e), MaxMistakes)]
}

// MaxQuoted is the maximum number of bytes that an error quotes from a list.
const MaxQuoted = 40

// Quoted returns the beginning of a text, quoted and escaped for a log.
func Quoted(text []byte) string {
	if len(text) > MaxQuoted {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(string(text[:MaxQuoted]), ""))
	}
	return fmt.Sprintf("%q", text)
}

// rfc3339 is the format of RFC 3339, 5.6, in upper case, as the RFC recommends. Go's time.Parse
// also accepts a zone of +24:00, an hour with a single digit, and a comma.
var rfc3339 = regexp.MustCompile(
	`^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}(\.[0-9]{1,40})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`)

// ParseTime reads an RFC 3339 time. The time must not be zero, and FormatTime must be able to write
// it.
func ParseTime(text string) (time.Time, error) {
	const wrong = "not an RFC 3339 time, such as 2030-01-31T12:00:00Z"
	if len(text) > 80 || !rfc3339.MatchString(text) {
		return time.Time{}, errors.New(wrong)
	}
	t, err := time.Parse(time.RFC3339, text)
	if t = t.UTC(); err != nil || t.IsZero() || t.Year() < 0 || t.Year() > 9999 {
		return time.Time{}, errors.New(wrong)
	}
	return t, nil
}

// FormatTime is the inverse of ParseTime.
func FormatTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Check returns an error if no list can have the header.
func (h Header) Check() error {
	if !h.HasSerial && h.Serial != 0 {
		return errors.New("a serial although the list has none")
	}
	if !h.Expires.IsZero() {
		if _, err := ParseTime(FormatTime(h.Expires)); err != nil {
			return fmt.Errorf("the expiry: %w", err)
		}
	}
	return sources.CheckText("", "list name", h.Name)
}

// Tidy returns a text without the blanks around it, and what is wrong with it as a selector with
// the given prefix, or an empty string. what says what the text is.
func Tidy(prefix, what string, text []byte) (tidied []byte, problem string) {
	if isPlain(text) && len(prefix)+len(text) <= sources.MaxSelector { // nearly all are
		return text, ""
	}
	trimmed := sources.TrimBlanks(string(text))
	if err := sources.CheckText(prefix, what, trimmed); err != nil {
		return nil, err.Error()
	}
	return []byte(trimmed), ""
}

// isPlain reports whether a text consists of visible ASCII characters.
func isPlain(text []byte) bool {
	for _, c := range text {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// TidyLabel is Tidy for a label. nth is the number of the label among those that one entry gives,
// from 1.
func TidyLabel(nth int, label []byte) (tidied []byte, problem string) {
	if nth > sources.MaxLabels {
		return nil, fmt.Sprintf("more than %d labels", sources.MaxLabels)
	}
	tidied, problem = Tidy(sources.PrefixLabel, "label", label)
	if problem == "" && len(tidied) == 0 {
		problem = "an empty label"
	}
	return tidied, problem
}

// ParseNumber reads a decimal number that fits into 64 bits.
func ParseNumber(text []byte) (uint64, error) {
	n, err := strconv.ParseUint(string(text[:min(len(text), 32)]), 10, 64)
	if err != nil {
		return 0, errors.New("something other than a whole number from 0 to 18446744073709551615")
	}
	return n, nil
}
