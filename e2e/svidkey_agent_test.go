package e2e_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// keysOf returns the directory of an agent's keys, below its data.
func keysOf(dir string) string { return filepath.Join(dir, "tpm") }

// newestSlot returns the slot of the newest key.
func (w *world) newestSlot(dir string) string {
	w.t.Helper()
	l, err := keydir.List(keysOf(dir))
	if err != nil || len(l.Slots) == 0 {
		w.t.Fatalf("the keys are %v, %v", l, err)
	}
	return l.Slots[0].ID
}

// hold has another program hold a software TPM for a time.
func (w *world) hold(tpm *swtpmtest.TPM, d time.Duration) {
	w.t.Helper()
	conn, err := net.Dial("unix", tpm.Socket)
	if err != nil {
		w.t.Fatal(err)
	}
	time.AfterFunc(d, func() { conn.Close() })
}

// An agent whose key is in the TPM works like any other agent: it rotates its SVID, with the slots in turn,
// and keeps the same SVID when it restarts and when the machine does. A TPM that is missing or held by
// another program only delays the agent. A copy of its data is worth nothing on a machine with another TPM,
// whether that machine is enrolled or not. The server needs no setting for this.
func TestAgentWithItsKeyInTheTPM(t *testing.T) {
	w := newWorldFor(t, 3*time.Minute)
	hashes := w.folder("hashes")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("hash_path = %q", hashes), AgentTTL: shortTTL,
	})
	m := w.machine(nil)
	w.list(hashes, m)
	dir := w.folder("agent")
	m.keys = keysOf(dir)

	a := w.agentIn(dir, s, m)
	if _, err := a.Attested(w.ctx); err != nil {
		t.Fatal(err)
	}
	slot := w.newestSlot(dir)
	rotate := func() {
		t.Helper()
		w.waitLog(a.Process, a.Mark(), "Successfully reattested node")
		if now := w.newestSlot(dir); now == slot {
			t.Errorf("the slot is %s again", now)
		} else {
			slot = now
		}
	}
	rotate()
	rotate()
	w.hold(m.tpm, 10*time.Second)
	rotate()

	// The machine restarts: the SVID is still good, and the key is made again.
	a.Stop()
	m.tpm.Restart()
	a = w.agentIn(dir, s, m)
	w.waitLog(a.Process, 0, "SVID loaded")
	w.waitLog(a.Process, 0, "Starting agent APIs")
	rotate()

	// The TPM is away when a rotation is due.
	m.tpm.Stop()
	time.AfterFunc(7*time.Second, m.tpm.Restart)
	rotate()
	if log := a.Log(); strings.Contains(log, "level=error") {
		t.Errorf("the agent has an error in its log:\n%s", a.Tail())
	}
	a.Stop()
	w.copiedData(s, hashes, dir, m)
}

// copiedData starts agents with a copy of another machine's data.
func (w *world) copiedData(s *spiretest.Server, hashes, dir string, m machine) {
	w.t.Helper()
	thief := w.machine(nil)
	for _, enrolled := range []bool{false, true} {
		stolen := w.folder("stolen")
		if err := os.CopyFS(stolen, os.DirFS(dir)); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Chmod(keysOf(stolen), 0o700); err != nil {
			w.t.Fatal(err)
		}
		thief.keys = keysOf(stolen)
		if enrolled {
			w.list(hashes, thief)
		}
		a := w.agentIn(stolen, s, thief)
		w.waitLog(a.Process, 0, "leaving out a key of another TPM")
		if !enrolled {
			if err := a.Wait(w.ctx); err == nil || !strings.Contains(a.Log(), "PermissionDenied") {
				w.t.Errorf("it ended with %v:\n%s", err, a.Tail())
			}
			continue
		}
		if id, err := a.Attested(w.ctx); err != nil || !strings.HasSuffix(id, thief.hash) {
			w.t.Errorf("the copy is %s, %v; the machine is %s", id, err, m.hash)
		}
	}
}

// svidKeys checks what the README of the example tpm-svid-key says: a machine with the example's agent.conf is
// admitted, with a selector that says so; one whose keys are elsewhere is not, though it is listed.
func (s *site) svidKeys(server *spiretest.Server) {
	m := s.machine(nil)
	s.put("/srv/tpm/hashes/"+m.hash, "")
	s.refused(server, m)
	m.keys = keysOf(s.folder("data"))
	a, known := s.admitted(server, m)
	s.wantSelectors(known, "pub_hash:"+m.hash, "rule:default", "source:inventory", "svid_key:tpm")
	a.Stop()
}
