package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// A severity says what a finding means.
type severity string

// The severities.
const (
	severityError   severity = "error"   // it does not work like this
	severityUnknown severity = "unknown" // it could not be looked at
	severityWarning severity = "warning" // it works, and may not be what was meant
)

// A finding is something that a person should know or mend. At is the path of keys in the
// configuration. File and Line are the place in a file that the configuration names. Action says
// what to do, unless the message does.
type finding struct {
	Severity severity `json:"severity"`
	At       string   `json:"at"`
	File     string   `json:"file,omitempty"`
	Line     int      `json:"line,omitempty"`
	Message  string   `json:"message"`
	Action   string   `json:"action,omitempty"`
}

// String returns the finding in a line.
func (f finding) String() string {
	var text strings.Builder
	switch f.Severity {
	case severityWarning:
		text.WriteString("warning: ")
	case severityUnknown:
		text.WriteString("cannot tell: ")
	}
	if f.At != "" {
		text.WriteString(f.At + ": ")
	}
	if f.File != "" {
		text.WriteString(mistake{File: f.File, Line: f.Line}.String())
	}
	text.WriteString(f.Message)
	if f.Action != "" {
		text.WriteString(": " + f.Action)
	}
	return text.String()
}

// findings collects what is found.
type findings []finding

func (f *findings) warn(at, action, format string, args ...any) {
	*f = append(*f, finding{
		Severity: severityWarning, At: at, Message: fmt.Sprintf(format, args...), Action: action,
	})
}

// failed adds an error about what a path of keys names. If the error says that it could not be
// looked at, nothing is known of it.
func (f *findings) failed(at string, err error) { f.inFile(at, "", err) }

// inFile does what failed does. If the error says where in a file the mistakes are, it is this file.
func (f *findings) inFile(at, file string, err error) {
	for _, m := range mistakesIn(file, err) {
		one := finding{Severity: severityError, At: at, Line: m.Line, Message: m.Problem}
		if m.Place != "" {
			one.Message = m.Place + ": " + m.Problem
		}
		if m.Place != "" || m.Line > 0 {
			one.File = file
		}
		if couldNotLook(err) {
			one.Severity = severityUnknown
		}
		*f = append(*f, one)
	}
}

// couldNotLook reports whether an error says nothing about what was looked at.
func couldNotLook(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, sqltable.ErrDown) ||
		errors.Is(err, fs.ErrPermission) || errors.Is(err, errHangs) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// has reports whether there are findings of a severity.
func (f findings) has(s severity) bool {
	for _, one := range f {
		if one.Severity == s {
			return true
		}
	}
	return false
}

// under reports whether there is a finding of a severity at a path of keys, or below it.
func (f findings) under(at string, s severity) bool {
	for _, one := range f {
		if one.Severity == s && (one.At == at || strings.HasPrefix(one.At, at+": ")) {
			return true
		}
	}
	return false
}
