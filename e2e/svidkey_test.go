package e2e_test

import (
	"crypto/ecdsa"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

var longRotations = flag.Bool("svidkey.long", false, "rotate with an agent_ttl of a minute, which takes 5 minutes")

// composed returns the configuration of a server in dir that has both plugins.
func (w *world) composed(dir, mode, hashes string) spiretest.ServerConfig {
	return spiretest.ServerConfig{
		Dir:         dir,
		PluginData:  svidKeyData(mode, hashes, dir+"/tpm/svid.sock"),
		MorePlugins: w.composerBlock(fmt.Sprintf("plugin_data { socket = %q }", dir+"/tpm/svid.sock")),
	}
}

func svidKeyData(mode, hashes, socket string) string {
	return fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }\nsvid_key = %q\nsvid_key_socket = %q",
		hashes, mode, socket)
}

func (w *world) composerBlock(data string) string {
	return fmt.Sprintf("CredentialComposer \"tpm\" {\nplugin_cmd = %q\n%s\n}", w.programs.ServerPlugin, data)
}

// keyed returns a machine whose agent has its key in the TPM, and the folder for that agent.
func (w *world) keyed() (machine, string) {
	w.t.Helper()
	m, dir := w.machine(nil), w.folder("agent")
	m.keys = keysOf(dir)
	return m, dir
}

// Under required, an agent whose key is in the TPM rotates ten times without an error, with
// the slots in turn: SPIRE has signed each SVID for the key that was certified, since the composer
// lets no other through.
func TestSVIDKeyTenRotations(t *testing.T) {
	ttl, limit := shortTTL, 3*time.Minute
	if *longRotations {
		ttl, limit = time.Minute, 10*time.Minute
	}
	w := newWorldFor(t, limit)
	hashes := w.folder("hashes")
	c := w.composed(w.folder("server"), "required", hashes)
	c.AgentTTL = ttl
	s := w.server(c)
	m, dir := w.keyed()
	w.list(hashes, m)
	a := w.agentIn(dir, s, m)
	id, err := a.Attested(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	slots, serials := []string{w.newestSlot(dir)}, []string{w.agents(s)[id].X509SvidSerialNumber}
	for mark := a.Mark(); len(slots) <= 10; {
		if _, err := a.WaitLog(w.ctx, mark, "Successfully reattested node"); err != nil {
			t.Fatal(err)
		}
		mark = a.Mark()
		slots = append(slots, w.newestSlot(dir))
		serials = append(serials, w.agents(s)[id].X509SvidSerialNumber)
		n := len(slots)
		if slots[n-1] == slots[n-2] || serials[n-1] == serials[n-2] {
			t.Errorf("the slots are %v, the serials %v", slots, serials)
		}
	}
	for _, p := range []*spiretest.Process{s.Process, a.Process} {
		if log := p.Log(); strings.Contains(log, "level=error") {
			t.Errorf("%s has an error in its log:\n%s", p.Name, p.Tail())
		}
	}
	known := w.agents(s)[id]
	if !hasSVIDKey(known) {
		t.Errorf("the selectors are %v", known.Selectors)
	}
	w.wantWorkloadSVID(s, a, known)
}

// An agent that is started again, after its TPM was reset, has the same key and goes on
// with the same SVID: the server sees no attestation.
func TestSVIDKeySurvivesRestart(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(w.composed(w.folder("server"), "required", hashes))
	m, dir := w.keyed()
	w.list(hashes, m)
	a := w.agentIn(dir, s, m)
	id, err := a.Attested(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := w.agents(s)[id]
	a.Stop()
	m.tpm.Restart()
	mark := s.Mark()
	a = w.agentIn(dir, s, m)
	w.waitLog(a.Process, 0, "SVID loaded")
	w.wantWorkloadSVID(s, a, before)
	if after := w.agents(s)[id]; after.X509SvidSerialNumber != before.X509SvidSerialNumber {
		t.Error("the agent has another SVID")
	}
	if log := s.Log()[mark:]; strings.Contains(log, "Machine admitted") {
		t.Errorf("the agent has attested again:\n%s", s.Tail())
	}
}

// Under required, agents whose key is in memory or on disk are refused for good, and so are
// older agents, and SPIRE is never asked to sign anything for them.
func TestSVIDKeyRequiredRefusesOtherAgents(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(w.composed(w.folder("server"), "required", hashes))
	m := w.machine(nil)
	w.list(hashes, m)
	line := w.refused(s, m)
	if !strings.Contains(line, "svid_key=none") || !strings.Contains(line, `svid_key is \"required\"`) {
		t.Errorf("the server's log has %s", line)
	}
	before := attestortest.New(t, attestortest.Options{})
	w.write(filepath.Join(hashes, before.EKHash()), "")
	_, err := w.client(s).attest(w.ctx, before.Payload(t), incumbentAnswer(before))
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), `use KeyManager "tpm"`) {
		t.Errorf("an older agent: %v", err)
	}
	if strings.Contains(s.Log(), "SVID refused") {
		t.Error("SPIRE was about to sign an SVID")
	}
}

// withKey returns a client whose CSR is for a key.
func (c client) withKey(t *testing.T, key *ecdsa.PrivateKey) client {
	t.Helper()
	c.csr = csrOf(t, key)
	return c
}

// A man in the middle of an insecure bootstrap passes on what the agent sends, with a CSR of
// his own; root on the machine has the TPM certify one key and asks for an SVID for another. Both
// are refused, and the server keeps what it knows of the agent.
func TestSVIDKeyOfAnotherCSR(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	for _, mode := range []string{"optional", "required"} {
		w := w.in(t)
		config := w.composed(w.folder("s"), mode, hashes)
		config.Metrics = true
		s := w.server(config)
		tpm := attestortest.New(t, attestortest.Options{SVIDKey: &attestortest.SVIDKey{}})
		w.write(filepath.Join(hashes, tpm.EKHash()), "")
		answer := func(challenge []byte) ([]byte, error) {
			return attestor.NewProver(tpm.Claim(), tpm).Answer(challenge)
		}
		c := w.client(s)
		id, err := c.withKey(t, tpm.SVIDKey()).attest(w.ctx, tpm.Payload(t), answer)
		if err != nil {
			t.Fatal(err)
		}
		before := w.agents(s)[id]
		_, err = c.attest(w.ctx, tpm.Payload(t), answer)
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "not the one that its TPM has certified") {
			t.Errorf("%s: %v", mode, err)
		}
		if after := w.agents(s)[id]; after.String() != before.String() {
			t.Errorf("%s: the server knows %v, and knew %v", mode, after, before)
		}
		w.waitLog(s.Process, 0, "SVID refused", id)
		for outcome, n := range map[string]string{"allowed": "1", "other_key": "1", "no_key": "0"} {
			w.wantMetric(s, metric{
				name: "spire_server_tpm_composer", labels: map[string]string{"outcome": outcome}, value: n,
			})
		}
		// The key that was certified still serves.
		if _, err := c.withKey(t, tpm.SVIDKey()).attest(w.ctx, tpm.Payload(t), answer); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// composerPID returns the process of a server's composer: the plugin that listens at the socket.
func (w *world) composerPID(s *spiretest.Server) int {
	w.t.Helper()
	children, err := spiretest.Children(s.PID())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, pid := range children {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err == nil && strings.Contains(string(env), "CredentialComposer=CredentialComposer") {
			return pid
		}
	}
	w.t.Fatal("there is no composer")
	return 0
}

// Without a composer, or after the composer was killed, no agent of this plugin gets an SVID, not even
// with svid_key = "optional". The server answers Unavailable, so the agent tries again, and the log says
// what to do. A restart mends it, and replaces the socket that the killed composer has left.
func TestSVIDKeyWithoutComposer(t *testing.T) {
	w := newWorld(t)
	hashes, dir := w.folder("hashes"), w.folder("server")
	tpm := attestortest.New(t, attestortest.Options{})
	w.write(filepath.Join(hashes, tpm.EKHash()), "")
	unavailable := func(s *spiretest.Server, why string) {
		t.Helper()
		_, err := w.client(s).attest(w.ctx, tpm.Payload(t), incumbentAnswer(tpm))
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "credential composer does not answer") {
			t.Errorf("%v", err)
		}
		w.waitLog(s.Process, 0, "outcome=unavailable", why, `add CredentialComposer \"tpm\"`)
	}
	c := w.composed(dir, "optional", hashes)
	without := c
	without.MorePlugins = ""
	s := w.server(without)
	unavailable(s, "no such file or directory")
	s.Stop()

	c.Dir = w.folder("server")
	s = w.server(c)
	if err := syscall.Kill(w.composerPID(s), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	unavailable(s, "connection refused")
	s.Stop()

	attests := func() {
		t.Helper()
		c.Dir = w.folder("server") // the next log is another file; the socket is the same
		s = w.server(c)
		if _, err := w.client(s).attest(w.ctx, tpm.Payload(t), incumbentAnswer(tpm)); err != nil {
			t.Error(err)
		}
	}
	attests()
	// The server itself is killed, and its plugins with it, while the next one starts.
	if err := s.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	attests()
	s.Stop()
	if _, err := os.Lstat(dir + "/tpm/svid.sock"); !os.IsNotExist(err) {
		t.Errorf("the socket of a server that has ended: %v", err)
	}
}

// Two servers share a datastore, and each has its own composer: an agent attests to one server, and
// next time to the other.
func TestSVIDKeyTwoServers(t *testing.T) {
	w := newWorld(t)
	hashes, store := w.folder("hashes"), w.folder("store")
	config := func() spiretest.ServerConfig {
		c := w.composed(w.folder("server"), "required", hashes)
		c.DatastorePath = store + "/datastore.sqlite3"
		return c
	}
	one, two := w.server(config()), w.server(config())
	bundle, err := os.ReadFile(two.BundlePath) // has the CAs of both
	if err != nil {
		t.Fatal(err)
	}
	w.write(one.BundlePath, string(bundle))
	m, dir := w.keyed()
	w.list(hashes, m)
	var serials []string
	for _, s := range []*spiretest.Server{one, two, one} {
		a := w.agentIn(dir, s, m)
		id, err := a.Attested(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, w.agents(s)[id].X509SvidSerialNumber)
		a.Stop()
		for _, name := range []string{"agent-data.json", "agent_svid.der"} {
			_ = os.Remove(filepath.Join(dir, name)) // so that the next one attests anew
		}
	}
	if slices.Sort(serials); len(slices.Compact(serials)) != 3 {
		t.Errorf("the serials are %v", serials)
	}
}

// Old and new versions work together while a fleet migrates: an older agent and one with its key in the
// TPM, at a server with svid_key = "optional" and at one without svid_key.
func TestSVIDKeyOptional(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	m, dir := w.keyed()
	w.list(hashes, m)
	before := attestortest.New(t, attestortest.Options{})
	w.write(filepath.Join(hashes, before.EKHash()), "")
	for i, c := range []spiretest.ServerConfig{
		w.composed(w.folder("server"), "optional", hashes), {PluginData: fmt.Sprintf("hash_path = %q", hashes)},
	} {
		c.Metrics = true
		s := w.server(c)
		id, err := w.client(s).attest(w.ctx, before.Payload(t), incumbentAnswer(before))
		if err != nil {
			t.Fatal(err)
		}
		if hasSVIDKey(w.agents(s)[id]) {
			t.Error("an older agent has the selector")
		}
		a := w.agentIn(fmt.Sprint(dir, i), s, machine{
			tpm: m.tpm, ek: m.ek, hash: m.hash, keys: fmt.Sprint(dir, i, "/tpm"),
		})
		if id, err = a.Attested(w.ctx); err != nil {
			t.Fatal(err)
		}
		a.Stop()
		if got := hasSVIDKey(w.agents(s)[id]); got != (i == 0) {
			t.Errorf("server %d: an agent with its key in the TPM has the selector: %t", i, got)
		}
		if i == 0 {
			for _, in := range []string{"tpm", "none"} {
				w.wantMetric(s, metric{
					name: "spire_server_tpm_attestation_svid_key", labels: map[string]string{"svid_key": in}, value: "1",
				})
			}
		}
	}
}

// An agent that was admitted while reattest was false renews its SVID without an attestation, for
// whatever key it likes. The composer refuses that, since nobody has handed over that key.
func TestSVIDKeyRenewalWithoutAttestation(t *testing.T) {
	w := newWorld(t)
	hashes, store := w.folder("hashes"), w.folder("store")
	tpm, key := attestortest.New(t, attestortest.Options{}), newKey(t)
	w.write(filepath.Join(hashes, tpm.EKHash()), "")
	renew := func(s *spiretest.Server, svid *x509svid.SVID) error {
		_, err := agentv1.NewAgentClient(w.connect(s, svid)).RenewAgent(w.ctx, &agentv1.RenewAgentRequest{
			Params: &agentv1.AgentX509SVIDParams{Csr: csrOf(t, newKey(t))},
		})
		return err
	}
	before := w.server(spiretest.ServerConfig{
		PluginData:    fmt.Sprintf("hash_path = %q\nreattest = false", hashes),
		DatastorePath: store + "/datastore.sqlite3",
	})
	issued, err := w.client(before).withKey(t, key).svidBy(w.ctx, "tpm", tpm.Payload(t), incumbentAnswer(tpm))
	if err != nil {
		t.Fatal(err)
	}
	svid := &x509svid.SVID{
		ID:           spiffeid.RequireFromString("spiffe://example.org" + issued.Id.Path),
		Certificates: w.chain(issued.CertChain), PrivateKey: key,
	}
	if err := renew(before, svid); err != nil {
		t.Fatal(err)
	}
	before.Stop()
	c := w.composed(w.folder("server"), "optional", hashes)
	c.DatastorePath = store + "/datastore.sqlite3"
	err = renew(w.server(c), svid)
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "no key has been handed over") {
		t.Errorf("the renewal: %v", err)
	}
}

func hasSVIDKey(a *types.Agent) bool {
	return slices.ContainsFunc(a.Selectors, func(x *types.Selector) bool { return x.Type == "tpm" && x.Value == "svid_key:tpm" })
}

// A fleet moves its keys into the TPM and back as the guide says, and keeps its SPIFFE IDs: first the servers get
// svid_key = "optional", then the agents KeyManager "tpm", then the servers svid_key = "required". If only one of
// an agent's two settings is then taken out, the agent's log says what is wrong; with both out, it is refused.
func TestSVIDKeyThereAndBack(t *testing.T) {
	w := newWorld(t)
	hashes, store, dir := w.folder("hashes"), w.folder("store")+"/datastore.sqlite3", w.folder("agent")
	c := w.composed(w.folder("server"), "optional", hashes)
	c.DataFile, c.DatastorePath = true, store
	s := w.server(c)
	m := w.machine(nil)
	m.disk = true
	w.list(hashes, m)
	want := "spiffe://example.org/spire/agent/tpm/" + m.hash
	attests := func(inTPM bool) {
		t.Helper()
		a := w.agentIn(dir, s, m)
		defer a.Stop()
		if id, err := a.Attested(w.ctx); err != nil || id != want || hasSVIDKey(w.agents(s)[id]) != inTPM {
			t.Fatalf("it is %s, %v: want the selector: %t", id, err, inTPM)
		}
	}
	logs := func(words ...string) {
		t.Helper()
		before, err := os.Stat(filepath.Join(dir, "agent.log")) // has the lines of earlier agents
		if err != nil {
			t.Fatal(err)
		}
		a := w.agentIn(dir, s, m)
		defer a.Stop()
		w.waitLog(a.Process, before.Size(), words...)
	}
	attests(false)
	m.keys, m.disk = keysOf(dir), false
	attests(true)

	mark := s.Mark()
	if err := s.Reconfigure(svidKeyData("required", hashes, c.Dir+"/tpm/svid.sock")); err != nil {
		t.Fatal(err)
	}
	w.waitLog(s.Process, mark, "Plugin reconfigured", "NodeAttestor")
	logs("SVID loaded") // its SVID is for the same key
	m.disk = true       // and svid_key_directory is still there
	logs("Failed to retrieve attestation result", "not the one that its TPM has certified", "svid_key_directory")
	m.keys = ""
	a := w.agentIn(dir, s, m)
	if err := a.Wait(w.ctx); err == nil || !strings.Contains(a.Log(), "PermissionDenied") {
		t.Errorf("it ended with %v:\n%s", err, a.Tail())
	}
	s.Stop()

	s = w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf("hash_path = %q", hashes), DatastorePath: store})
	_ = os.Remove(filepath.Join(dir, "agent-data.json")) // has the earlier server's bundle; this server has a new CA
	attests(false)
}

// A copy of a machine's data is worth nothing on a machine with another TPM: that machine attests as
// itself if it is enrolled, and is refused otherwise.
func TestSVIDKeyCopiedData(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	s := w.server(w.composed(w.folder("server"), "required", hashes))
	m, dir := w.keyed()
	w.list(hashes, m)
	a := w.agentIn(dir, s, m)
	id, err := a.Attested(w.ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := w.agents(s)[id]
	a.Stop()
	w.copiedData(s, hashes, dir, m)
	if after := w.agents(s)[id]; after.X509SvidSerialNumber != before.X509SvidSerialNumber {
		t.Error("the machine that was copied has another SVID")
	}
}

// While a server runs, validate changes nothing, and SIGUSR1 can move the socket. A second server with
// the same socket does not start, and the first one goes on.
func TestSVIDKeyConfigurations(t *testing.T) {
	w := newWorld(t)
	hashes, dir := w.folder("hashes"), w.folder("server")
	composerFile := filepath.Join(dir, "composer.conf")
	socket := func(name string) string { return dir + "/" + name + "/svid.sock" }
	w.write(composerFile, fmt.Sprintf("socket = %q", socket("one")))
	s := w.server(spiretest.ServerConfig{
		Dir: dir, PluginData: svidKeyData("required", hashes, socket("one")), DataFile: true,
		MorePlugins: w.composerBlock(fmt.Sprintf("plugin_data_file = %q", composerFile)),
	})
	tpm := attestortest.New(t, attestortest.Options{SVIDKey: &attestortest.SVIDKey{}})
	w.write(filepath.Join(hashes, tpm.EKHash()), "")
	c := w.client(s).withKey(t, tpm.SVIDKey())
	attests := func() {
		t.Helper()
		_, err := c.attest(w.ctx, tpm.Payload(t), func(challenge []byte) ([]byte, error) {
			return attestor.NewProver(tpm.Claim(), tpm).Answer(challenge)
		})
		if err != nil {
			t.Error(err)
		}
	}
	attests()
	if out, err := s.Validate(w.ctx); err != nil {
		t.Errorf("validate: %v\n%s", err, out)
	}
	attests()

	second := spiretest.ServerConfig{
		Dir: w.folder("server"), PluginData: svidKeyData("required", hashes, socket("one")),
		MorePlugins: w.composerBlock(fmt.Sprintf("plugin_data { socket = %q }", socket("one"))),
	}
	if other, err := w.programs.StartServer(w.ctx, second); err == nil {
		other.Stop()
		t.Error("a second server starts with the same socket")
	} else if !strings.Contains(err.Error(), "another process has this socket: each SPIRE server") {
		t.Error(err)
	}
	attests()

	mark := s.Mark()
	w.write(composerFile, fmt.Sprintf("socket = %q", socket("two")))
	if err := s.Reconfigure(svidKeyData("required", hashes, socket("two"))); err != nil {
		t.Fatal(err)
	}
	w.waitLog(s.Process, mark, "Plugin reconfigured", "NodeAttestor")
	w.waitLog(s.Process, mark, "Plugin reconfigured", "CredentialComposer")
	attests()
	if _, err := os.Lstat(socket("one")); !os.IsNotExist(err) {
		t.Errorf("the previous socket: %v", err)
	}
}
