package evict

import (
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// The brake stops a list that collapses, by mistake or by an attack, from emptying a fleet.
const (
	// Of a fleet, brakeFewest machines or one in brakeShare may go at once, whichever is more.
	brakeFewest, brakeShare = 5, 100
	// brakeWindow is the time that counts as "at once".
	brakeWindow, inWords = 10 * time.Minute, "10 minutes"
)

// A brake remembers the machines that were evicted within brakeWindow. One goroutine uses it.
type brake struct {
	evicted map[sources.EKHash]time.Time
}

func newBrake() *brake { return &brake{evicted: map[sources.EKHash]time.Time{}} }

// note notes an eviction.
func (b *brake) note(hash sources.EKHash, now time.Time) { b.evicted[hash] = now }

// holds returns why nobody may be evicted, or nothing. live are all agents, and pending is the number of
// them that would go. Machines that were evicted within the window count as live and pending: a list that
// loses its entries one by one has collapsed as well.
func (b *brake) holds(live []*agent, pending int, isPending func(*agent) bool, now time.Time) string {
	total := len(live)
	for hash, at := range b.evicted {
		if now.Sub(at) >= brakeWindow {
			delete(b.evicted, hash)
		}
	}
	before := len(b.evicted)
	for _, a := range live { // a machine that was evicted and came back is counted once
		if _, ok := b.evicted[a.hash]; !ok {
			continue
		}
		total--
		if isPending(a) {
			pending--
		}
	}
	going, total := pending+before, total+before
	most := max(brakeFewest, total/brakeShare)
	switch {
	case pending == 0:
		return ""
	case going > most:
		return fmt.Sprintf("%d of %d agents would go within %s, and at most %d may", going, total, inWords, most)
	case going >= total && total > 1:
		return fmt.Sprintf("all %d agents would go within %s", total, inWords)
	}
	return ""
}
