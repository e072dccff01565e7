package eklist

import "fmt"

// A list collapses if more than one entry in collapseShare goes at once, and more
// than collapseLeast.
const collapseShare, collapseLeast = 5, 10

// Collapse returns a warning if next has lost so much of s that its writer may have
// made a mistake, or nothing. s may be nil, if nothing was served before. It takes
// some milliseconds for a million entries.
func (s *Snapshot) Collapse(next *Snapshot) string {
	if s == nil || s.n == 0 {
		return ""
	}
	gone := 0
	for change := range s.Changes(next) {
		if change.Kind == Removed {
			gone++
		}
	}
	if gone <= collapseLeast || gone <= s.n/collapseShare {
		return ""
	}
	return fmt.Sprintf("the list has collapsed: it has %d entries now and had %d before, of which %d are gone; "+
		"it is served as it is, so publish it anew if that was a mistake", next.n, s.n, gone)
}
