package sources

import "fmt"

// A FieldError is one mistake in the configuration of a source. A constructor returns a FieldError
// for each mistake, joined by errors.Join, so that a person can correct all of them at once. The
// caller that has read the configuration from a file adds the place of the field.
//
// The Config of a source may have a method Warnings() []FieldError, for what a person should know
// about a valid configuration.
type FieldError struct {
	// Field is the name of the field as a configuration spells it: "poll_interval".
	Field string
	// Problem says what is wrong with the value and, unless that is obvious, what to write instead.
	// It is read after the name: "is longer than 64 bytes". It may name other fields in the same
	// spelling, and never contains a secret. The caller may append an example to "is missing", and
	// the value to a problem that begins with "must ".
	Problem string
}

// BadField returns a FieldError.
func BadField(field, format string, args ...any) error {
	return FieldError{field, fmt.Sprintf(format, args...)}
}

func (e FieldError) Error() string { return e.Field + " " + e.Problem }
