package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A world has the servers, agents and TPMs of one test, and the folder with all their files.
// Everything is stopped and removed when the test ends.
type world struct {
	t        *testing.T
	ctx      context.Context // of the whole test
	programs spiretest.Programs
	dir      string
	folders  int
}

// busy is how much longer than promised something may take here, since other tests and the
// fuzzers use the same processors. Package tests with a clock of their own hold the promises to the
// second; here they are logged.
const busy = 20 * time.Second

// newWorld makes the test parallel, with a limit of a minute and a half.
func newWorld(t *testing.T) *world {
	t.Helper()
	const limit = 90 * time.Second
	return newWorldFor(t, limit)
}

// newWorldFor is like newWorld, with another time limit.
func newWorldFor(t *testing.T, limit time.Duration) *world {
	t.Helper()
	t.Parallel()
	programs, err := spiretest.Find()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "e2e") // the paths of testing's folders are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(func() {
		cancel()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &world{t: t, ctx: ctx, programs: programs, dir: dir}
}

// in returns the world for a subtest.
func (w *world) in(t *testing.T) *world {
	t.Helper()
	inner := *w
	inner.t, inner.dir = t, w.folder("sub")
	return &inner
}

// folder makes a folder and returns its path.
func (w *world) folder(kind string) string {
	w.t.Helper()
	w.folders++
	dir := filepath.Join(w.dir, fmt.Sprintf("%s%d", kind, w.folders))
	if err := os.Mkdir(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// keepLog shows a process's log if the test fails.
func (w *world) keepLog(p *spiretest.Process) {
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("%s, %s:\n%s", p.Name, p.LogPath, p.Log())
		}
	})
}

// server starts a server that is stopped when the test ends.
func (w *world) server(c spiretest.ServerConfig) *spiretest.Server {
	w.t.Helper()
	if c.Dir == "" {
		c.Dir = w.folder("server")
	}
	s, err := w.programs.StartServer(w.ctx, c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.Stop)
	w.keepLog(s.Process)
	return s
}

// A machine is a TPM, one of its EKs, and the EK hash.
type machine struct {
	tpm  *swtpmtest.TPM
	ek   string // the type, as in the agent's configuration
	hash string
	log  string // the file with its event log; empty if it has none
	// devID is the folder with its DevID, or empty.
	devID string
	// keys is the directory with the agent's keys, which are in the TPM; or empty.
	keys string
	// disk is whether the agent has the KeyManager "disk", whatever keys says.
	disk bool
}

// machine makes a machine with an EK certificate from ca. If ca is nil, the machine has its own
// CA. The hash comes from the agent plugin's command line, as for an operator.
func (w *world) machine(ca *swtpmtest.CA) machine {
	w.t.Helper()
	return w.enrol(swtpmtest.Start(w.t, swtpmtest.Options{CA: ca}), "auto")
}

// enrol returns a machine with the hash of one of the TPM's EKs.
func (w *world) enrol(tpm *swtpmtest.TPM, ek string) machine {
	w.t.Helper()
	report, err := w.programs.EKReport(w.ctx, tpm.Device, ek)
	if err != nil {
		w.t.Fatal(err)
	}
	hash, err := spiretest.ParseEKHash(report)
	if err != nil {
		w.t.Fatal(err)
	}
	return machine{tpm: tpm, ek: ek, hash: hash}
}

// agent starts an agent on m in a new folder.
func (w *world) agent(s *spiretest.Server, m machine) *spiretest.Agent {
	w.t.Helper()
	return w.agentIn(w.folder("agent"), s, m)
}

// agentIn starts an agent on m in the folder dir, like a restart.
func (w *world) agentIn(dir string, s *spiretest.Server, m machine) *spiretest.Agent {
	w.t.Helper()
	data := fmt.Sprintf("device = %q\nek = %q", m.tpm.Device, m.ek)
	if m.log != "" {
		data += fmt.Sprintf("\nevent_log_path = %q", m.log)
	}
	if m.devID != "" {
		data += fmt.Sprintf("\ndevid {\ncert_path = %q\npriv_path = %q\npub_path = %q\n}",
			m.devID+"/devid.pem", m.devID+"/devid.priv", m.devID+"/devid.pub")
	}
	c := spiretest.AgentConfig{Dir: dir, Server: s, PluginData: data}
	if m.keys != "" {
		c.PluginData += fmt.Sprintf("\nsvid_key_directory = %q", m.keys)
		c.KeyManager = fmt.Sprintf("device = %q\ndirectory = %q", m.tpm.Device, m.keys)
	}
	if m.disk {
		c.KeyManager, c.DiskKeys = "", true
	}
	a, err := w.programs.StartAgent(c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(a.Stop)
	w.keepLog(a.Process)
	return a
}

// admitted starts an agent on m, which must be admitted. It returns the agent, and the server's
// record of it.
func (w *world) admitted(s *spiretest.Server, m machine) (*spiretest.Agent, *types.Agent) {
	w.t.Helper()
	return w.admittedAs("spiffe://example.org/spire/agent/tpm/"+m.hash, s, m)
}

func (w *world) admittedAs(want string, s *spiretest.Server, m machine) (*spiretest.Agent, *types.Agent) {
	w.t.Helper()
	a := w.agent(s, m)
	id, err := a.Attested(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	if id != want {
		w.t.Errorf("the agent is %s, want %s", id, want)
	}
	known := w.agents(s)[id]
	if known == nil {
		w.t.Fatalf("the server does not list %s", id)
	}
	return a, known
}

// refused starts an agent on m, which must be refused: the agent gives up, and the server does
// not list it. It returns the line of the server's log with the EK hash.
func (w *world) refused(s *spiretest.Server, m machine) string {
	w.t.Helper()
	return w.refusedAs("refused", s, m)
}

// refusedAs is like refused, with another outcome in the server's log.
func (w *world) refusedAs(outcome string, s *spiretest.Server, m machine) string {
	w.t.Helper()
	mark := s.Mark()
	a := w.agent(s, m)
	if err := a.Wait(w.ctx); err == nil {
		w.t.Error("the agent ended with exit code 0")
	}
	if log := a.Log(); !strings.Contains(log, "PermissionDenied") {
		w.t.Errorf("the agent was not told PermissionDenied:\n%s", a.Tail())
	}
	// An agent that was admitted before is listed until it is evicted or pruned.
	known := w.agents(s)["spiffe://example.org/spire/agent/tpm/"+m.hash]
	if known != nil && time.Unix(known.X509SvidExpiresAt, 0).After(time.Now()) {
		w.t.Error("the server lists a machine that it refused, with an SVID that is valid")
	}
	return w.waitLog(s.Process, mark, "outcome="+outcome, m.hash)
}

// waitLog waits for a line in a log that contains all of words, for a short time.
func (w *world) waitLog(p *spiretest.Process, mark int64, words ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 30*time.Second)
	defer cancel()
	line, err := p.WaitLog(ctx, mark, words...)
	if err != nil {
		w.t.Fatal(err)
	}
	return line
}

// agents returns the server's records of agents, by SPIFFE ID.
func (w *world) agents(s *spiretest.Server) map[string]*types.Agent {
	w.t.Helper()
	rsp, err := w.agentAPI(s).ListAgents(w.ctx, &agentv1.ListAgentsRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	agents := map[string]*types.Agent{}
	for _, a := range rsp.Agents {
		agents["spiffe://"+a.Id.TrustDomain+a.Id.Path] = a
	}
	return agents
}

func (w *world) agentAPI(s *spiretest.Server) agentv1.AgentClient {
	w.t.Helper()
	conn, err := s.API()
	if err != nil {
		w.t.Fatal(err)
	}
	return agentv1.NewAgentClient(conn)
}

// evict evicts an agent, like `spire-server agent evict`.
func (w *world) evict(s *spiretest.Server, a *types.Agent) {
	w.t.Helper()
	if _, err := w.agentAPI(s).DeleteAgent(w.ctx, &agentv1.DeleteAgentRequest{Id: a.Id}); err != nil {
		w.t.Fatal(err)
	}
}

// list adds a machine to a hash_dir.
func (w *world) list(dir string, m machine) {
	w.t.Helper()
	w.write(filepath.Join(dir, m.hash), "")
}

// unlist removes a machine from a hash_dir.
func (w *world) unlist(dir string, m machine) {
	w.t.Helper()
	if err := os.Remove(filepath.Join(dir, m.hash)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) write(path, content string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// wantSelectors checks that the agent has exactly these selectors of the type tpm. Each of want
// is a regular expression for a whole value.
func (w *world) wantSelectors(a *types.Agent, want ...string) {
	w.t.Helper()
	var got []string
	for _, s := range a.Selectors {
		if s.Type == "tpm" {
			got = append(got, s.Value)
		}
	}
	for _, pattern := range want {
		re := regexp.MustCompile("^(" + pattern + ")$")
		i := slices.IndexFunc(got, re.MatchString)
		if i < 0 {
			w.t.Errorf("no selector tpm:%s", pattern)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	if len(got) > 0 {
		w.t.Errorf("selectors that should not be there: %q", got)
	}
}
