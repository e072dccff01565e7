package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// Preview asks every source about a machine that is not connected, and returns the answers in the
// order of the sources' names. Those that depend on what the machine would prove wrap
// sources.ErrNeedsChallenge. All others are the answers that AfterChallenge would get. Those that
// depend on the network wrap sources.ErrNeedsNetwork, unless network is true; then the network is
// used if an answer from it can change the decision or what it grants.
//
// No list is loaded early. ev.Proof must be nil, otherwise Preview returns an error. Preview
// returns within the times of BeforeChallenge and AfterChallenge together.
func (s *Set) Preview(ctx context.Context, ev *sources.Evidence, network bool) ([]policy.Answer, error) {
	if ev == nil || ev.Proof != nil {
		return nil, errors.New("a preview is of a machine that has not been challenged")
	}
	proven := *ev
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	proven.Proof = &sources.Proof{AK: key.Public()}
	within := func() time.Time { return time.Now().Add(s.opts.CheckTimeout) }
	before := s.begin(ev)
	before.patient = true
	before.ask(ctx, within(), before.all(), (*runner).checkLane)
	e := s.begin(&proven)
	e.answers = before.answers
	settled := slices.DeleteFunc(e.all(), func(i int) bool {
		return errors.Is(e.answers[i].Err, sources.ErrNeedsChallenge)
	})
	e.ask(ctx, within(), settled, (*runner).checkLane)
	if !network {
		return e.answers, nil
	}
	worth := slices.DeleteFunc(s.plan.WorthFetching(e.answers), func(i int) bool {
		return !e.answers[i].NeedsNetwork()
	})
	e.ask(ctx, time.Now().Add(s.opts.FetchTimeout), worth, (*runner).fetchLane)
	others := slices.DeleteFunc(settled, func(i int) bool { return slices.Contains(worth, i) })
	e.ask(ctx, within(), others, (*runner).checkLane)
	return e.answers, nil
}

// Plan returns the compiled policy, over the sources in the order of their names.
func (s *Set) Plan() *policy.Plan { return s.plan }
