package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// bootLimit is the time limit of tests in which several machines boot.
const bootLimit = 3 * time.Minute

// bootLog returns the log of a machine that has booted a kernel with Secure Boot.
func bootLog(kernel string) *eventlogtest.Log {
	return eventlogtest.Boot{Images: [][]byte{[]byte("boot loader"), []byte(kernel)}}.Log()
}

// booted returns a machine that has booted a kernel: its PCRs are extended, and its log says by what.
func (w *world) booted(ca *swtpmtest.CA, kernel string) machine {
	w.t.Helper()
	m, log := w.machine(ca), bootLog(kernel)
	for i := range log.Events {
		if e := &log.Events[i]; e.Extends() {
			m.tpm.Extend(int(e.PCR), map[string][]byte{"sha256": e.Digest("sha256")})
		}
	}
	m.log = filepath.Join(w.folder("log"), "binary_bios_measurements")
	w.write(m.log, string(log.Bytes()))
	return m
}

// newEvent says how the server's log names the kernel that m has booted and no profile knows.
func newEvent(kernel string) []string {
	sum := sha256.Sum256([]byte(kernel))
	number := slices.IndexFunc(bootLog(kernel).Events, func(e eventlogtest.Event) bool {
		return e.PCR == 4 && string(e.Measured) == kernel
	})
	return []string{fmt.Sprintf("event %d", number+1), hex.EncodeToString(sum[:])}
}

// profile adds a machine to the profile web in a file. It makes the file if it does not exist, and replaces
// it as a whole.
func (w *world) profile(m machine, file string, args ...string) {
	w.t.Helper()
	args = append([]string{"boot", "profile", "--device", m.tpm.Device, "--log", m.log, "--name", "web", "--to", file}, args...)
	if out, err := exec.CommandContext(w.ctx, w.programs.Tool, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("tpm-attestor %q: %v\n%s", args, err, out)
	}
}

// wantSVIDByProfile registers a workload for all machines that meet the profile web, and gets its SVID
// on one of them.
func (w *world) wantSVIDByProfile(s *spiretest.Server, a *spiretest.Agent) {
	w.t.Helper()
	w.register(s, "/boot/web", "/spire/server", &types.Selector{Type: "tpm", Value: "boot:web"})
	w.register(s, "/workload", "/boot/web", ownUser())
	if err := spiretest.Poll(w.ctx, func() error { return w.fetch(a) }); err != nil {
		w.t.Errorf("a workload on a machine that meets the profile gets no SVID: %v", err)
	}
}

// An operator begins with a trial, whose lines in the log say what it would refuse and by which event.
// The new kernel is then added to the profile, which takes effect without a restart, and the rule is enforced.
// From then on the old and the new kernel are admitted by one profile, and a third is refused.
func TestBootPolicyFromTrialToRule(t *testing.T) {
	w := newWorldFor(t, bootLimit)
	ca, hashes, file := swtpmtest.NewCA(t), w.folder("hashes"), filepath.Join(w.folder("boot"), "boot.json")
	old, fresh, third := w.booted(ca, "kernel 1"), w.booted(ca, "kernel 2"), w.booted(ca, "kernel 3")
	for _, m := range []machine{old, fresh, third} {
		w.list(hashes, m)
	}
	w.profile(old, file, "--label", "boot:ok")
	data := func(rules string) string {
		return fmt.Sprintf(`
		quote {
			pcrs      = [0, 2, 4, 7]
			event_log = "optional"
			selectors = [4]
		}
		source "hash_dir" "inventory" { path = %q }
		source "boot_policy" "golden" { path = %q }
		`, hashes, file) + rules
	}
	s := w.server(spiretest.ServerConfig{DataFile: true, PluginData: data(`
		allow "today"    { any = ["inventory"] }
		allow "measured" {
			all     = ["inventory", "golden"]
			enforce = false
		}`)})
	plugin := w.pluginPID(s)

	a, known := w.admitted(s, fresh)
	w.wantSelectors(known, "pub_hash:"+fresh.hash, "rule:today", "source:inventory", "secureboot:enabled",
		"pcr:4:sha256:"+hex.EncodeToString(bootLog("kernel 2").PCRs("sha256")[4]))
	w.waitLog(s.Process, 0, append(newEvent("kernel 2"), "Machine admitted", fresh.hash,
		"allow measured: would not hold", "sha256 PCRs 0,2,4,7; the event log replays; Secure Boot enabled")...)
	a.Stop()

	mark := s.Mark()
	w.profile(fresh, file, "--merge", file)
	w.waitLog(s.Process, mark, "Source status", "source=golden")
	a, _ = w.admitted(s, fresh)
	w.waitLog(s.Process, mark, "Machine admitted", fresh.hash, "allow measured: would hold")
	a.Stop()

	w.reconfigure(s, data(`allow "measured" { all = ["inventory", "golden"] }`), "Plugin reconfigured")
	for _, m := range []machine{old, fresh} {
		a, known = w.admitted(s, m)
		w.wantSelectors(known, "pub_hash:"+m.hash, "rule:measured", "source:inventory", "source:golden",
			"boot:web", "label:boot:ok", "secureboot:enabled", "pcr:4:sha256:[0-9a-f]{64}")
	}
	w.wantSVIDByProfile(s, a)
	line := w.refused(s, third)
	for _, want := range append(newEvent("kernel 3"), "golden: not listed (meets no profile; web: ") {
		if !strings.Contains(line, want) {
			t.Errorf("the log does not say %q: %s", want, line)
		}
	}
	if now := w.pluginPID(s); now != plugin {
		t.Errorf("the plugin was process %d and is process %d", plugin, now)
	}
}

// The server follows profiles on a web server without a restart. Profiles need a signature as lists do: the
// server takes neither changed nor older profiles. A server that requires a quote refuses agents that cannot
// quote, such as spire-tpm-plugin's.
func TestBootPolicyBehindAWebServer(t *testing.T) {
	w := newWorldFor(t, bootLimit)
	n, ca, hashes, file := w.webServer(), swtpmtest.NewCA(t), w.folder("hashes"), filepath.Join(w.folder("boot"), "boot.json")
	n.openssl("genpkey", "-algorithm", "ed25519", "-out", "list.key")
	n.openssl("pkey", "-in", "list.key", "-pubout", "-out", "list.pub")
	old, fresh, incumbent := w.booted(ca, "kernel 1"), w.booted(ca, "kernel 2"), stranger(t, 0)
	for _, hash := range []string{old.hash, fresh.hash, incumbent.EKHash()} {
		w.list(hashes, machine{hash: hash})
	}
	w.profile(old, file)
	first := w.signable(file, 1)
	n.publishSigned(first)
	n.start()
	golden := strings.Replace(n.source("golden", `poll_interval = "1s"`,
		fmt.Sprintf("signature_url = \"https://%s/tpm.json.sig\"", n.address()),
		fmt.Sprintf("public_key_path = %q", n.path("list.pub")), `list_id = "fleet"`), `"http"`, `"boot_policy"`, 1)
	s := w.server(spiretest.ServerConfig{PluginData: golden + fmt.Sprintf(`
		quote {
			pcrs      = [0, 2, 4, 7]
			event_log = "required"
			required  = true
		}
		source "hash_dir" "inventory" { path = %q }
		allow "measured" { all = ["inventory", "golden"] }`, hashes)})
	plugin := w.pluginPID(s)
	w.admitted(s, old)
	w.refused(s, fresh)
	_, err := w.client(s).attest(w.ctx, incumbent.Payload(t), incumbentAnswer(incumbent))
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "only machines that quote their PCRs") {
		t.Errorf("an agent that cannot quote is told %v", err)
	}

	w.profile(fresh, file, "--merge", file)
	second := w.signable(file, 2)
	for _, attack := range []struct {
		says    string
		publish func()
	}{
		{"the list's signature", func() { n.publish(second) }}, // that of the first is still there
		{"", func() { n.publishSigned(second) }},
		{"is a replay", func() { n.publishSigned(first) }},
	} {
		mark := s.Mark()
		attack.publish()
		if attack.says != "" {
			w.waitLog(s.Process, mark, "the last good data stays", attack.says)
			continue
		}
		w.waitLog(s.Process, mark, "Source status", "source=golden", "serial=2")
		w.admitted(s, fresh)
	}
	if now := w.pluginPID(s); now != plugin {
		t.Errorf("the plugin was process %d and is process %d", plugin, now)
	}
}

// signable returns the profiles in a file with what a signed list needs.
func (w *world) signable(file string, serial int) string {
	w.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		w.t.Fatal(err)
	}
	doc["serial"], doc["list"], doc["expires"] = serial, "fleet", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	if text, err = json.Marshal(doc); err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// layMeasuredBoot has three machines with a kernel each. The first two are in the profile, and the next
// profile leaves out the first kernel.
func (s *site) layMeasuredBoot() {
	ca := swtpmtest.NewCA(s.t)
	s.mkdir("/etc/tpm")
	for _, kernel := range []string{"kernel 1", "kernel 2", "kernel 3"} {
		m := s.booted(ca, kernel)
		s.put("/srv/tpm/hashes/"+m.hash, "")
		s.kernels = append(s.kernels, m)
	}
	golden, next := s.root+"/etc/tpm/boot.json", s.root+"/etc/tpm/boot-next.json"
	s.profile(s.kernels[0], golden, "--label", "boot:ok")
	s.profile(s.kernels[1], golden, "--merge", golden)
	s.profile(s.kernels[1], next, "--label", "boot:ok")
}

// On trial, the rule refuses nobody, and the log says whom it would refuse.
func (s *site) measuredTrial(server *spiretest.Server) {
	for i, would := range []string{"would hold", "would hold", "would not hold"} {
		m := s.kernels[i]
		_, known := s.admitted(server, m)
		s.wantSelectors(known, "pub_hash:"+m.hash, "rule:listed", "source:inventory", "secureboot:enabled")
		s.waitLog(server.Process, 0, "Machine admitted", m.hash, "allow measured: "+would)
	}
}

// One profile admits both kernels, and the log says which machine the next one would refuse.
func (s *site) measured(server *spiretest.Server) {
	for i, would := range []string{"would not hold", "would hold"} {
		m := s.kernels[i]
		a, known := s.admitted(server, m)
		s.wantSelectors(known, "pub_hash:"+m.hash, "rule:measured", "source:inventory", "source:golden",
			"boot:web", "label:boot:ok", "secureboot:enabled")
		s.waitLog(server.Process, 0, "Machine admitted", m.hash, "allow next: "+would)
		if i == 1 {
			s.wantSVIDByProfile(server, a)
		}
	}
	s.refused(server, s.kernels[2])
}
