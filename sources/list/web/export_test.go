package web

import "time"

// SetRetryPause sets the pause between the first two requests of an attempt.
func (o *Origin) SetRetryPause(d time.Duration) { o.retryPause = d }

// SetTimeout changes Config.Timeout for the attempts that follow.
func (o *Origin) SetTimeout(d time.Duration) { o.cfg.Timeout = d }
