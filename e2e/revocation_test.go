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

// A machine keeps its identity for longer than one SVID's life only by attesting again. That is
// a whole attestation, which asks the plugin.
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

// Removal from the list is enough to cut a machine off: it is refused at its next re-attestation,
// and its agent ends at the latest when its SVID expires.
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

// Removal and eviction together cut a machine off within seconds, long before its next
// re-attestation: the TTL is SPIRE's default of an hour.
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
	// The exit code of SPIRE's agent depends on how it learns of the eviction.
	if err := a.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the evicted agent still runs: %v", err)
	}
	if err := w.fetch(a); err == nil {
		t.Error("a workload on the evicted machine still gets an SVID")
	}
	w.refused(s, m)
}

// If several servers share one directory, as over NFS, an entry counts on all of them at once,
// and so does its removal, without a signal to any server.
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
		a.Stop() // the next agent needs the TPM
		w.evict(s, known)
	}
	w.unlist(hashes, m)
	for _, s := range servers {
		w.refused(s, m)
	}
}

// With reattest = false, a machine that has attested cannot attest again until an operator evicts
// it. So nobody can attest in its name later.
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
