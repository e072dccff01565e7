package evict

import (
	"fmt"
	"time"
)

// returned is a machine that was evicted and that this configuration has not admitted since.
type returned struct {
	times int       // how often it was evicted
	last  time.Time // when it was last evicted
}

// quiet is how long after its last eviction the machine is left alone.
func (r *returned) quiet() time.Duration { return min(leastReturn<<min(r.times-1, 20), mostReturn) }

// readmitted returns a problem if the server admits a machine again and again that this configuration refuses,
// or nothing.
func (e *evicter) readmitted() string {
	for _, s := range e.suspects {
		if r := e.returns[s.hash]; r != nil && r.times > 1 {
			return fmt.Sprintf("the server has admitted %s again after each of its %d evictions, so it does not "+
				"follow this configuration or these lists: was it told to read its configuration again (SIGUSR1), and "+
				"do all servers of its database have the same rules and lists?", s.name, r.times)
		}
	}
	return ""
}
