package server_test

import (
	"context"
	"sync"
	"testing"

	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// slowAgentStore knows no agent, and answers once a number of callers have asked.
type slowAgentStore struct {
	agentstorev1.UnimplementedAgentStoreServer
	asked sync.WaitGroup
}

func (s *slowAgentStore) GetAgentInfo(context.Context, *agentstorev1.GetAgentInfoRequest,
) (*agentstorev1.GetAgentInfoResponse, error) {
	s.asked.Done()
	s.asked.Wait()
	return nil, status.Error(codes.NotFound, "no such agent")
}

// Two agents that relay one TPM's answers attest as one machine at the same moment: both
// are unknown to SPIRE's AgentStore, and only one may be admitted.
func TestOneIDTwiceAtOnce(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	const attempts = 8
	store := &slowAgentStore{}
	store.asked.Add(attempts)
	p := serve(t, agentstorev1.AgentStoreServiceServer(store))
	p.configure(t, oneHashDir(hashDir(t, tpm))+"reattest = false")
	var all sync.WaitGroup
	errs := make(chan error, attempts)
	for range attempts {
		all.Go(func() {
			_, err := p.attestTPM(t, tpm)
			errs <- err
		})
	}
	all.Wait()
	close(errs)
	admitted := 0
	for err := range errs {
		if err == nil {
			admitted++
			continue
		}
		wantStatus(t, err, codes.Unavailable, "is being admitted already")
	}
	if admitted != 1 {
		t.Errorf("%d of %d were admitted, want 1", admitted, attempts)
	}
}

// A reservation that was never used must not keep the machine out: if the AgentStore could not
// tell, the plugin asks it again at once; an agent that is stored needs no reservation; and an
// agent that was evicted may attest again.
func TestReservationThatIsOfNoUse(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	id := "spiffe://example.org/spire/agent/tpm/" + tpm.EKHash()
	store := &fakeAgentStore{agents: map[string]error{id: status.Error(codes.Internal, "down")}}
	p := serve(t, agentstorev1.AgentStoreServiceServer(store))
	p.configure(t, oneHashDir(hashDir(t, tpm))+"reattest = false")
	know := func(change func()) {
		store.mu.Lock()
		defer store.mu.Unlock()
		change()
	}
	_, err := p.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "cannot tell right now")
	know(func() { delete(store.agents, id) })
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Errorf("the store is back: %v", err)
	}
	_, err = p.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "is being admitted already")
	know(func() { store.agents[id] = nil })
	_, err = p.attestTPM(t, tpm)
	wantStatus(t, err, codes.PermissionDenied, "admitted before")
	know(func() { delete(store.agents, id) })
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Errorf("evicted: %v", err)
	}
}
