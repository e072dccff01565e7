package admission

import (
	"context"
	"reflect"
	"slices"
)

// Start makes each source's first Load, all concurrently, and starts following
// their changes. It returns when all of these have ended, or when ctx ends: a
// Load still in progress then continues until its own deadline. A source whose
// first Load fails is logged and cannot tell until a later one succeeds.
//
// Sources that previous, which may be nil, already runs with the same configuration
// are taken over with everything they have loaded, and with the Options they were
// started with; they are not loaded anew. Nothing is taken over from a previous Set
// that was never started or is closed.
//
// Start must be called once, before anything is asked. After Close it does nothing.
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

// launch takes over and starts, and returns the runners that it started.
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
