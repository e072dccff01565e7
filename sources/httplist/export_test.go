package httplist

import "time"

// HurryUp makes retries follow at once.
func (s *Source) HurryUp() { s.retryPause = time.Millisecond }
