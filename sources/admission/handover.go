package admission

import (
	"context"
	"reflect"
	"slices"
)

// Start makes the first Load of each source, all at the same time, and starts to follow their
// changes. It returns when all of these Loads have ended, or when ctx ends; a Load in progress then
// continues until its own deadline. If the first Load fails, that is logged, and the source cannot
// tell until a later Load succeeds.
//
// If previous is not nil and runs a source with the same configuration, that source is taken over
// with everything that it has loaded and with the Options with which it was started; it is not
// loaded again. Nothing is taken over from a Set that was never started or is closed.
//
// Start must be called once, before any source is asked. After Close it does nothing.
func (s *Set) Start(ctx context.Context, previous *Set) {
	for _, r := range s.launch(previous) { //nolint:contextcheck // a source outlives the ctx that bounds Start
		select {
		case <-r.first:
		case <-ctx.Done():
			select {
			case <-r.first:
			default:
				r.log.Warn("source is still loading; it cannot tell until it has loaded")
			}
		}
	}
}

// launch takes sources over, starts the others, and returns the runners of those.
func (s *Set) launch(previous *Set) []*runner {
	var before map[string]handover
	if previous != nil && previous != s {
		before = previous.handover()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.closed {
		return nil
	}
	s.started = true
	running := slices.Clone(s.running) // evaluations may hold the old slice
	var fresh []*runner
	for i, m := range s.members {
		h, ok := before[m.Name]
		if ok && m.Kind == h.Kind && m.Config != nil && reflect.DeepEqual(m.Config, h.Config) && h.runner.retain() {
			running[i] = h.runner
			continue
		}
		running[i].start()
		fresh = append(fresh, running[i])
	}
	s.running = running
	return fresh
}

// A handover is what a later Set may take over.
type handover struct {
	Member
	runner *runner
}

func (s *Set) handover() map[string]handover {
	running := s.runners()
	m := make(map[string]handover, len(running))
	for i, member := range s.members {
		m[member.Name] = handover{member, running[i]}
	}
	return m
}

func (s *Set) runners() []*runner {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.running
}
