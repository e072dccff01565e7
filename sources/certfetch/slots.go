package certfetch

import (
	"context"
	"slices"
	"sync"
)

// Limits on what is under way.
const (
	// maxRequests is the number of requests at once, maxPerHost of those to one
	// host.
	maxRequests, maxPerHost = 16, 4
	// maxFlights is the number of URLs that are asked for or wait to be, and
	// maxFlightsPerHost of those on one host.
	maxFlights, maxFlightsPerHost = 1024, 512
	// maxCrowd is how many wait for a host that keeps them waiting: fewer than
	// there are slots for those who fetch, so that such hosts take them all from
	// nobody.
	maxCrowd = 16
)

// slots let through a number of requests at once, and fewer to one host. A slot
// that is given back goes to the host that has the fewest: one that hangs, or is
// asked for a thousand URLs, does not keep another one waiting for more than a
// request. The zero value is ready.
type slots struct {
	mu      sync.Mutex
	taken   int
	by      map[string]int // taken, by host
	waiting []*waiter      // in the order in which they have come
}

type waiter struct {
	host  string
	ready chan struct{} // closed when it has a slot
}

// acquire waits for a slot until ctx ends. Where it returns nil, release gives the
// slot back.
func (s *slots) acquire(ctx context.Context, host string) error {
	w := &waiter{host: host, ready: make(chan struct{})}
	s.mu.Lock()
	if s.by == nil {
		s.by = map[string]int{}
	}
	s.waiting = append(s.waiting, w)
	s.grant()
	s.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.Index(s.waiting, w); at >= 0 {
		s.waiting = slices.Delete(s.waiting, at, at+1)
	} else {
		s.free(host)
	}
	return ctx.Err()
}

// release gives a slot back.
func (s *slots) release(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free(host)
}

func (s *slots) free(host string) {
	s.taken--
	if s.by[host]--; s.by[host] == 0 {
		delete(s.by, host)
	}
	s.grant()
}

// grant gives slots to those that wait.
func (s *slots) grant() {
	for s.taken < maxRequests {
		next := -1
		for i, w := range s.waiting {
			if n := s.by[w.host]; n < maxPerHost && (next < 0 || n < s.by[s.waiting[next].host]) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := s.waiting[next]
		s.waiting = slices.Delete(s.waiting, next, next+1)
		s.taken++
		s.by[w.host]++
		close(w.ready)
	}
}
