package web

import "time"

// SetRetryPause sets the pause between the first two requests of an attempt.
func (o *Origin) SetRetryPause(d time.Duration) { o.retryPause = d }
