package sources

import "fmt"

// A FieldError is one mistake in the configuration of a source. A constructor returns a
// FieldError for each mistake, joined by errors.Join, so that a person can correct all of them
// at once. Whoever has read the configuration from a file adds where the field stands.
//
// The Config of a source may have a method Warnings() []FieldError: what a person should
// know about a configuration that is right.
type FieldError struct {
	// Field is the name of the field as a configuration spells it: "poll_interval".
	Field string
	// Problem says what is wrong with the value, and what to write instead if that is
	// not plain. It is read after the name: "is longer than 64 bytes". It may name other
	// fields in the same spelling, and shows no secret. If it is "is missing", whoever
	// shows it may add an example; if it begins with "must ", what the value is.
	Problem string
}

// BadField returns a FieldError.
func BadField(field, format string, args ...any) error {
	return FieldError{field, fmt.Sprintf(format, args...)}
}

func (e FieldError) Error() string { return e.Field + " " + e.Problem }
