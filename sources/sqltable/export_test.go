package sqltable

import "time"

// SetRetryPause changes how long the database is left alone after a failure, and
// the file of the DSN after it was looked at.
func (s *Source) SetRetryPause(d time.Duration) { s.breaker.pause, s.lookPause = d, d }

// ParseLabels is parseLabels.
func ParseLabels(list string) ([]string, error) { return parseLabels(list) }

// Hold has connections kept as Run does, until LetGo.
func (s *Source) Hold() { s.hold() }

// LetGo ends Hold.
func (s *Source) LetGo() { s.letGo() }
