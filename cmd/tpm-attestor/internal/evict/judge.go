package evict

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// judge asks the sources about all agents, and makes suspects of those that are refused. It returns why
// some agents cannot be judged, or nothing.
func (e *evicter) judge(ctx context.Context, agents []*agent) (problem string) {
	within, cancel := context.WithTimeout(ctx, screenTimeout)
	defer cancel()
	status := e.site.previewer.Status()
	refused, unsure := e.screen(within, agents)
	if unconfirmed := e.suspectAll(within, refused, status); unconfirmed != "" {
		unsure = unconfirmed
	}
	return e.unjudged(unsure)
}

// screen asks the sources about all agents, and counts the answers. It returns those that are refused, and
// why the sources cannot tell about one of the others, or nothing.
func (e *evicter) screen(ctx context.Context, agents []*agent) (refused []screened, unsure string) {
	for s := range e.ask(ctx, agents) {
		e.count(s)
		switch s.decision.Outcome {
		case policy.Refused:
			refused = append(refused, s)
		case policy.Unavailable:
			unsure = s.decision.Explain()
		}
	}
	return refused, unsure
}

// count counts a decision.
func (e *evicter) count(s screened) {
	switch s.decision.Outcome {
	case policy.Refused:
		e.counts.Refused++
	case policy.Unavailable:
		e.counts.CannotTell++
	default:
		delete(e.returns, s.hash) // this configuration does not refuse it any longer
	}
}

// A screened agent is an agent with the decision about it by Previewer.Screen.
type screened struct {
	*agent
	decision policy.Decision
}

// ask asks the sources about all agents whose EK hash is known, in random order, with workers calls at a time. It
// closes the channel after the last answer. The caller must read the channel to its end.
func (e *evicter) ask(ctx context.Context, agents []*agent) <-chan screened {
	todo, done := make(chan *agent), make(chan screened)
	var asking sync.WaitGroup
	for range workers {
		asking.Go(func() {
			for a := range todo {
				done <- screened{a, e.site.previewer.Screen(ctx, a.evidence())}
			}
		})
	}
	go func() {
		for _, i := range rand.Perm(len(agents)) { //nolint:gosec // G404: nobody gains by knowing the order
			if !agents[i].unknown {
				todo <- agents[i]
			}
		}
		close(todo)
		asking.Wait()
		close(done)
	}()
	return done
}

// evidence returns what SPIRE keeps about a machine: its EK hash.
func (a *agent) evidence() *sources.Evidence {
	return &sources.Evidence{EKHash: a.hash, Incomplete: true}
}

// unjudged returns why some agents cannot be judged, or nothing if all can be. unsure is why one of them
// cannot be.
func (e *evicter) unjudged(unsure string) string {
	if e.counts.CannotTell == 0 {
		return ""
	}
	why := []string{fmt.Sprintf("%d of %d agents cannot be judged, and stay; of one of them, %s",
		e.counts.CannotTell, e.counts.Agents, unsure)}
	for _, s := range e.site.previewer.Status() {
		if s.Err != nil {
			why = append(why, fmt.Sprintf("source %s: %v", s.Name, s.Err))
		}
	}
	return strings.Join(why, "; ")
}
