package sourcetest

import (
	"os"
	"time"
)

// rounds is how often an action is repeated before its leaks are counted. noise is the number of
// leaks that may come from the rest of the process.
const rounds, noise = 16, 8

// within fails the test if f has not returned in time, and does not wait for f any longer.
func within(tb run, what string, f func()) {
	tb.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(tb.patience):
		tb.Fatalf("%s has not returned within %v", what, tb.patience)
	}
}

// openFiles returns the number of files that the process has open, or 0 if it is not known.
func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
