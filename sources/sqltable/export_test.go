package sqltable

import "time"

// SetRetryPause changes how long the database is left alone after a failure, and how long
// the file of the DSN is not read again.
func (s *Source) SetRetryPause(d time.Duration) { s.breaker.pause, s.lookPause = d, d }

// Rewrite is rewrite.
func Rewrite(dialect Dialect, query string) (string, error) { return rewrite(dialect, query) }

// ParseLabels returns the labels of a row whose column labels has the text list.
func ParseLabels(list string) ([]string, error) {
	attrs, err := (&row{labels: list}).attributes()
	return attrs.Labels, err
}

// Hold keeps connections as Watch does, until LetGo.
func (s *Source) Hold() { s.hold() }

// LetGo ends Hold.
func (s *Source) LetGo() { s.letGo() }
