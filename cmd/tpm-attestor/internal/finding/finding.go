// Package finding describes what commands find when they check something. In the order of severity, a finding is an
// error, something that could not be looked at, or a warning about a possible mistake.
package finding

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// A Severity says what a finding means.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // it does not work like this
	Unknown Severity = "unknown" // it could not be looked at
	Warning Severity = "warning" // it works, and may not be what was meant
)

// A Finding is something that a person should know or mend. At is the path of keys in the
// configuration. File and Line are the place in a file that the configuration names. Action says
// what to do, unless the message does.
type Finding struct {
	Severity Severity `json:"severity"`
	At       string   `json:"at"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"`
	Message  string   `json:"message"`
	Action   string   `json:"action,omitempty"`
}

// String returns the finding in a line.
func (f Finding) String() string {
	var text strings.Builder
	switch f.Severity {
	case Warning:
		text.WriteString("warning: ")
	case Unknown:
		text.WriteString("cannot tell: ")
	}
	if f.At != "" {
		text.WriteString(f.At + ": ")
	}
	if f.File != "" {
		text.WriteString(Mistake{File: f.File, Line: f.Line}.String())
	}
	text.WriteString(f.Message)
	if f.Action != "" {
		text.WriteString(": " + f.Action)
	}
	return text.String()
}

// A List collects what is found. Its zero value is empty.
type List []Finding

// Warn adds a warning. action says what to do, or is empty.
func (f *List) Warn(at, action, format string, args ...any) {
	*f = append(*f, Finding{
		Severity: Warning, At: at, Message: fmt.Sprintf(format, args...), Action: action,
	})
}

// Failed adds an error about what a path of keys names. The severity is Unknown if the error says that it could
// not be looked at.
func (f *List) Failed(at string, err error) { f.InFile(at, "", err) }

// InFile does what Failed does. If the error says in which lines or entries the mistakes are, they are in this file.
func (f *List) InFile(at, file string, err error) {
	for _, m := range MistakesIn(file, err) {
		one := Finding{Severity: Error, At: at, Line: m.Line, Message: m.Problem}
		if m.Place != "" {
			one.Message = m.Place + ": " + m.Problem
		}
		if m.Place != "" || m.Line > 0 {
			one.File = file
		}
		if CouldNotLook(err) {
			one.Severity = Unknown
		}
		*f = append(*f, one)
	}
}

// CouldNotLook reports whether an error says nothing about what was to be looked at: the network, a database or the
// file system has failed, or permission is missing.
func CouldNotLook(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, sqltable.ErrDown) ||
		errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrHangs) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Has reports whether there are findings of a severity.
func (f List) Has(s Severity) bool {
	for _, one := range f {
		if one.Severity == s {
			return true
		}
	}
	return false
}

// Under reports whether there is a finding of a severity at a path of keys, or below it.
func (f List) Under(at string, s Severity) bool {
	for _, one := range f {
		if one.Severity == s && (one.At == at || strings.HasPrefix(one.At, at+": ")) {
			return true
		}
	}
	return false
}
