package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// shortTTL is an agent_ttl with which SPIRE re-attests agents every few seconds.
const shortTTL = 15 * time.Second

// Re-attestation is what keeps a machine in for longer than one SVID lives, and
// it is a whole attestation: the plugin is asked again.
func TestReattests(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
		AgentTTL:   shortTTL,
	})
	m := w.machine(nil)
	w.list(hashes, m)
	_, known := w.admitted(s, m)
	id := "spiffe://example.org" + known.Id.Path
	err := spiretest.Poll(w.ctx, func() error {
		now := w.agents(s)[id]
		if now == nil {
			return errors.New("the server has lost the agent")
		}
		if now.X509SvidSerialNumber == known.X509SvidSerialNumber {
			return errors.New("the agent still has its first SVID")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Removal from the list alone cuts a machine off: it is refused at its next
// re-attestation, and ends when its SVID does.
func TestRemovedIsCutOffAtReattestation(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
		AgentTTL:   shortTTL,
	})
	m := w.machine(nil)
	w.list(hashes, m)
	a, known := w.admitted(s, m)
	w.wantWorkloadSVID(s, a, known)

	mark := s.Mark()
	w.unlist(hashes, m)
	w.waitLog(s.Process, mark, "outcome=refused", m.hash)
	// Its SVID may have been renewed a moment before the removal.
	ctx, cancel := context.WithTimeout(w.ctx, 2*shortTTL)
	defer cancel()
	if err := a.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the machine is still in: %v", err)
	} else if err == nil {
		t.Error("the agent ended with exit code 0")
	}
	if err := w.fetch(a); err == nil {
		t.Error("a workload on the removed machine still gets an SVID")
	}
	w.refused(s, m)
}

// Removal and eviction cut a machine off within seconds, not at its next
// re-attestation: the TTL here is SPIRE's default, an hour.
func TestRemovedAndEvictedIsCutOffAtOnce(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
	})
	m := w.machine(nil)
	w.list(hashes, m)
	a, known := w.admitted(s, m)
	w.wantWorkloadSVID(s, a, known)

	w.unlist(hashes, m)
	w.evict(s, known)
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	// SPIRE's agent ends with exit code 0 or another, by how it learns of it.
	if err := a.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the evicted agent still runs: %v", err)
	}
	if err := w.fetch(a); err == nil {
		t.Error("a workload on the evicted machine still gets an SVID")
	}
	w.refused(s, m)
}

// Several servers share one directory, as over NFS: an entry counts on all of
// them at once, and so does its removal, without a word to any server.
func TestTwoServersShareADirectory(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	config := spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
	}
	servers := []*spiretest.Server{w.server(config), w.server(config)}
	m := w.machine(nil)
	w.list(hashes, m)
	for _, s := range servers {
		a, known := w.admitted(s, m)
		a.Stop() // the machine's one TPM is needed for the other
		w.evict(s, known)
	}
	w.unlist(hashes, m)
	for _, s := range servers {
		w.refused(s, m)
	}
}

// Trust on first use, by SPIRE's own record of its agents: once a machine has
// attested nobody does so again in its name, until an operator evicts it.
func TestWithoutReattestationOnlyTheFirstAttests(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(
		"reattest = false\nsource \"hash_dir\" \"fleet\" { path = %q }", hashes)})
	m := w.machine(nil)
	w.list(hashes, m)
	first, known := w.admitted(s, m)
	if known.CanReattest {
		t.Error("the agent can re-attest")
	}
	first.Stop()

	second := w.agent(s, m)
	if err := second.Wait(w.ctx); err == nil {
		t.Error("the second agent ended with exit code 0")
	}
	if !strings.Contains(second.Log(), "PermissionDenied") {
		t.Errorf("the second agent was not told PermissionDenied:\n%s", second.Tail())
	}
	w.evict(s, known)
	w.admitted(s, m)
}
