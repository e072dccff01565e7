package sqltable

import "time"

// SetRetryPause changes how long the database is left alone after a failure, and
// the file of the DSN after it was looked at.
func (s *Source) SetRetryPause(d time.Duration) { s.breaker.pause, s.lookPause = d, d }

// ParseLabels returns the labels of a row with list in its column of labels.
func ParseLabels(list string) ([]string, error) {
	attrs, err := (&row{labels: list}).attributes()
	return attrs.Labels, err
}

// Hold has connections kept as Run does, until LetGo.
func (s *Source) Hold() { s.hold() }

// LetGo ends Hold.
func (s *Source) LetGo() { s.letGo() }
