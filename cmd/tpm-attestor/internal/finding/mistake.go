package finding

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A Mistake is a reason why a file cannot be used. Line and Place are empty if the mistake is in the file
// as a whole.
type Mistake struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Place   string `json:"place,omitempty"`
	Problem string `json:"problem"`
}

// String returns the mistake as compilers print theirs, so that editors find the line.
func (m Mistake) String() string {
	text := m.File + ": "
	if m.Line > 0 {
		text = fmt.Sprintf("%s:%d: ", m.File, m.Line)
	}
	if m.Place != "" {
		text += m.Place + ": "
	}
	return text + m.Problem
}

// MistakesIn returns the mistakes in an error from a parser of lists. Any other error is one mistake in the whole file.
func MistakesIn(file string, err error) []Mistake {
	several, ok := errors.AsType[list.FormatErrors](err)
	if !ok {
		one, ok := errors.AsType[*list.FormatError](err)
		if !ok {
			return []Mistake{{File: file, Problem: err.Error()}}
		}
		several = list.FormatErrors{one}
	}
	all := make([]Mistake, len(several))
	for i, one := range several {
		all[i] = Mistake{File: file, Line: one.Line, Problem: one.Problem}
		if one.Place != fmt.Sprintf("line %d", one.Line) {
			all[i].Place = one.Place
		}
	}
	return all
}

// MistakesError has the mistakes in one file or several. Its text has a line for each of them.
type MistakesError []Mistake

// Error implements error.
func (e MistakesError) Error() string {
	lines := make([]string, len(e))
	for i, m := range e {
		lines[i] = m.String()
	}
	text := strings.Join(lines, "\n")
	if len(e) >= list.MaxMistakes {
		text += fmt.Sprintf("\nthere may be more than these %d mistakes", len(e))
	}
	return text
}
