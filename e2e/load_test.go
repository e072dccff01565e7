package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

var (
	stormAgents = flag.Int("storm.agents", 100, "agents that attest in each load of TestStormOfAgents")
	stormAtOnce = flag.Int("storm.at-once", 16, "how many of them at the same time")
	stormOnly   = flag.String("storm.only", "", "run only the loads of these names, separated by commas, and x509pop")
)

// A load is a server configuration, and agents that all attest once to that server.
type load struct {
	name   string
	server spiretest.ServerConfig
	agents []agent
	want   codes.Code
	// each is called once a second while agents attest.
	each func(*spiretest.Server)
}

// An agent is the messages of one machine.
type agent struct {
	attestor string
	payload  []byte
	answer   func(challenge []byte) ([]byte, error)
}

// cost is what a load has cost.
type cost struct {
	wall            time.Duration
	server, plugin  time.Duration // of CPU
	agents          time.Duration // of CPU: this process
	latencies       []time.Duration
	files, filesEnd int // open in the plugin, before and after
	memory          int64
}

// Many agents attest at once, each with its own TPM and connection. All get the right result, and
// the plugin leaks neither memory nor files. The test prints a table of costs, with those of
// SPIRE's x509pop in the same run. `make storm` runs more agents.
func TestStormOfAgents(t *testing.T) {
	n := *stormAgents
	const each = 500 * time.Millisecond
	w := newWorldFor(t, 3*time.Minute+time.Duration(n)*each)
	loads := []load{
		w.x509pop(n), w.listed(n), w.quoting(n, false), w.quoting(n, true), w.strangers(n), w.certified(n), w.rewritten(n),
	}
	var table strings.Builder
	tab := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tab, "load\tagents\ta second\twithout agents\tp50 ms\tp99 ms\t"+
		"server µs\tplugin µs\tagents µs\tplugin's share\t")
	for _, l := range loads {
		only := strings.Split(*stormOnly, ",")
		if *stormOnly != "" && l.name != "x509pop" && !slices.Contains(only, l.name) {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			c := w.in(t).run(l)
			c.row(tab, l.name)
			const slack = 4 // files that a reload or a watch opens for a moment
			if c.filesEnd > c.files+slack {
				t.Errorf("the plugin had %d files open before and has %d now", c.files, c.filesEnd)
			}
			const limit = 128 << 20
			if c.memory > limit {
				t.Errorf("the plugin grew to %d MiB", c.memory>>20)
			}
		})
	}
	if err := tab.Flush(); err != nil {
		t.Error(err)
	}
	t.Logf("Attestations a second on %d processors, which the agents share, and as many as the processors could do\n"+
		"for the server and its plugin alone; CPU for each attestation, %d at once:\n%s",
		runtime.NumCPU(), *stormAtOnce, &table)
}

// row writes the cost of each attestation as a row of the table.
func (c *cost) row(tab *tabwriter.Writer, name string) {
	slices.Sort(c.latencies)
	n := len(c.latencies)
	if n == 0 {
		return
	}
	each := func(d time.Duration) time.Duration { return d / time.Duration(n) }
	const percent = 100
	fmt.Fprintf(tab, "%s\t%d\t%.0f\t%.0f\t%.1f\t%.1f\t%d\t%d\t%d\t%.1f %%\t\n", name, n,
		float64(n)/c.wall.Seconds(),
		float64(runtime.NumCPU()*n)/(c.server+c.plugin).Seconds(),
		c.latencies[n/2].Seconds()*1000, c.latencies[n*99/percent].Seconds()*1000,
		each(c.server).Microseconds(), each(c.plugin).Microseconds(), each(c.agents).Microseconds(),
		percent*c.plugin.Seconds()/(c.server+c.plugin).Seconds())
}

// run runs a load. The first agents warm everything up and do not count.
func (w *world) run(l load) *cost {
	w.t.Helper()
	l.server.LogLevel, l.server.Metrics, l.server.DataFile = "INFO", true, true
	s := w.server(l.server)
	plugin := w.pluginPID(s)
	w.attestAll(s, &l, l.agents[:min(len(l.agents), 2**stormAtOnce)])

	c := &cost{files: w.openFiles(plugin)}
	server0, plugin0, agents0, begun := w.cpu(s.PID()), w.cpu(plugin), w.cpu(os.Getpid()), time.Now()
	stop := every(time.Second, func() {
		if l.each != nil {
			l.each(s)
		}
	})
	c.latencies = w.attestAll(s, &l, l.agents)
	stop()
	c.wall = time.Since(begun)
	c.server, c.plugin, c.agents = w.cpu(s.PID())-server0, w.cpu(plugin)-plugin0, w.cpu(os.Getpid())-agents0
	c.filesEnd, c.memory = w.openFiles(plugin), w.peakMemory(plugin)
	if now := w.pluginPID(s); now != plugin {
		w.t.Errorf("the plugin was process %d and is process %d", plugin, now)
	}
	if l.each != nil {
		w.waitLog(s.Process, 0, "Plugin reconfigured")
	}
	return c
}

// every calls f at once and then at each interval, until stop is called. stop waits for f.
func every(interval time.Duration, f func()) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			f()
			select {
			case <-done:
				return
			case <-ticker.C:
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// attestAll runs the attestations of agents, some at a time, and returns how long each took.
func (w *world) attestAll(s *spiretest.Server, l *load, agents []agent) []time.Duration {
	w.t.Helper()
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	todo := make(chan agent)
	for range *stormAtOnce {
		wg.Go(func() {
			for a := range todo {
				c := w.newClient(s)
				begun := time.Now()
				_, err := c.attestBy(w.ctx, a.attestor, a.payload, a.answer)
				elapsed := time.Since(begun)
				_ = c.conn.Close()
				if got := status.Code(err); got != l.want {
					w.t.Errorf("an agent is told %v, want %v: %v", got, l.want, err)
				}
				mu.Lock()
				took = append(took, elapsed)
				mu.Unlock()
			}
		})
	}
	for _, a := range agents {
		todo <- a
	}
	close(todo)
	wg.Wait()
	return took
}

// cpu returns how much CPU time all threads of a process have used.
func (w *world) cpu(pid int) time.Duration {
	w.t.Helper()
	// CPUCLOCK_SCHED of a process: see clock_getcpuclockid(3).
	const pidShift, sched = 3, 2
	var ts unix.Timespec
	if err := unix.ClockGettime(^int32(pid)<<pidShift|sched, &ts); err != nil {
		w.t.Fatalf("CPU time of process %d: %v", pid, err)
	}
	return time.Duration(ts.Nano())
}

// openFiles returns how many files a process has open.
func (w *world) openFiles(pid int) int {
	w.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		w.t.Fatal(err)
	}
	return len(fds)
}

// machines returns n agents and their TPMs, whose numbers begin with first.
func (w *world) machines(first, n int, ca func(i int) *attestortest.CA) ([]agent, []*attestortest.TPM) {
	w.t.Helper()
	var agents []agent
	var tpms []*attestortest.TPM
	for i := range n {
		o := attestortest.Options{EK: attestor.P256, Number: first + i}
		if ca != nil {
			o.CA = ca(i)
		}
		tpm := attestortest.New(w.t, o)
		tpms = append(tpms, tpm)
		agents = append(agents, agent{"tpm", tpm.Payload(w.t), incumbentAnswer(tpm)})
	}
	return agents, tpms
}

// listed is a load of machines in a hash_dir, which are all admitted.
func (w *world) listed(n int) load {
	w.t.Helper()
	agents, tpms := w.machines(0, n, nil)
	dir := w.folder("hashes")
	for _, tpm := range tpms {
		w.write(filepath.Join(dir, tpm.EKHash()), "")
	}
	return load{name: "listed", agents: agents, server: inventory("hash_dir", dir)}
}

// quoting is a load of machines in a hash_dir that quote eight PCRs and, if withLog is true, send an event
// log of 50 KB.
func (w *world) quoting(n int, withLog bool) load {
	w.t.Helper()
	boot := eventlogtest.Boot{DBX: make([][]byte, 600)}
	for i := range boot.DBX {
		sum := sha256.Sum256(fmt.Append(nil, i))
		boot.DBX[i] = sum[:]
	}
	log := boot.Log()
	l := load{name: "8 PCRs"}
	block, o := "quote { pcrs = [0, 1, 2, 3, 4, 5, 6, 7] }", attestortest.Options{EK: attestor.P256}
	o.PCRs = map[string]map[int][]byte{"sha256": log.PCRs("sha256")}
	if withLog {
		l.name, block, o.EventLog = "50 KB log", strings.Replace(block, "}", `event_log = "required" }`, 1), log.Bytes()
	}
	dir := w.folder("hashes")
	for i := range n {
		o.Number = i
		tpm := attestortest.New(w.t, o)
		w.write(filepath.Join(dir, tpm.EKHash()), "")
		l.agents = append(l.agents, agent{"tpm", tpm.Payload(w.t), ownAnswer(tpm)})
	}
	l.server = inventory("hash_dir", dir)
	l.server.PluginData += "\n" + block
	return l
}

// ownAnswer returns a function that answers a challenge like this project's agent.
func ownAnswer(tpm *attestortest.TPM) func([]byte) ([]byte, error) {
	return func(challenge []byte) ([]byte, error) {
		return attestor.NewProver(tpm.Claim(), tpm).Answer(challenge)
	}
}

// strangers is a load of machines that are not listed, which are all refused.
func (w *world) strangers(n int) load {
	w.t.Helper()
	l := w.listed(n)
	l.name, l.want = "strangers", codes.PermissionDenied
	l.agents, _ = w.machines(n, n, nil)
	return l
}

// certified is a load of machines with EK certificates from 300 CAs.
func (w *world) certified(n int) load {
	w.t.Helper()
	const many = 300
	dir := w.folder("cas")
	cas := make([]*attestortest.CA, many)
	for i := range cas {
		cas[i] = attestortest.NewCA(w.t, fmt.Sprintf("chip maker %d", i))
		w.write(filepath.Join(dir, fmt.Sprintf("%d.pem", i)), string(cas[i].PEM()))
	}
	agents, _ := w.machines(0, n, func(i int) *attestortest.CA { return cas[i%many] })
	return load{name: "300 CAs", agents: agents, server: spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"ek_ca\" \"vendors\" {\n ca_path = %q\n crl = \"off\"\n}", dir),
	}}
}

// rewritten is a load of machines in a hash_file. Each second, the file is rewritten and the
// plugin is configured again.
func (w *world) rewritten(n int) load {
	w.t.Helper()
	agents, tpms := w.machines(0, n, nil)
	list := filepath.Join(w.folder("list"), "hashes.txt")
	var hashes strings.Builder
	for _, tpm := range tpms {
		hashes.WriteString(tpm.EKHash() + "\n")
	}
	round := 0
	rewrite := func() error {
		round++
		other := sha256.Sum256(fmt.Append(nil, round))
		next := list + ".next"
		return errors.Join(
			os.WriteFile(next, []byte(hashes.String()+hex.EncodeToString(other[:])+"\n"), 0o600),
			os.Rename(next, list))
	}
	if err := rewrite(); err != nil {
		w.t.Fatal(err)
	}
	config := inventory("hash_file", list)
	each := func(s *spiretest.Server) {
		// The name makes it another configuration.
		text := config.PluginData + fmt.Sprintf("\nsource \"hash_file\" \"round-%d\" { path = %q }\n"+
			"allow \"fleet\" { any = [\"inventory\", \"round-%d\"] }\n", round%2, list, round%2)
		if err := errors.Join(rewrite(), s.Reconfigure(text)); err != nil {
			w.t.Error(err)
		}
	}
	return load{name: "rewritten", agents: agents, server: config, each: each}
}

func inventory(kind, path string) spiretest.ServerConfig {
	return spiretest.ServerConfig{PluginData: fmt.Sprintf("source %q \"inventory\" { path = %q }", kind, path)}
}

// x509pop is a load of machines that attest to SPIRE's x509pop with a certificate.
func (w *world) x509pop(n int) load {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	ca := w.certificate(&x509.Certificate{
		Subject: pkix.Name{CommonName: "machines"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil, key, key)
	bundle := filepath.Join(w.folder("x509pop"), "ca.pem")
	w.write(bundle, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw})))
	l := load{name: "x509pop", server: inventory("hash_dir", w.folder("hashes"))}
	l.server.MorePlugins = fmt.Sprintf("NodeAttestor \"x509pop\" { plugin_data { ca_bundle_path = %q } }", bundle)
	for i := range n {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			w.t.Fatal(err)
		}
		cert := w.certificate(&x509.Certificate{
			Subject: pkix.Name{CommonName: fmt.Sprintf("machine-%d", i)}, KeyUsage: x509.KeyUsageDigitalSignature,
		}, ca, own, key)
		payload, err := json.Marshal(map[string]any{"certificates": [][]byte{cert.Raw}})
		if err != nil {
			w.t.Fatal(err)
		}
		l.agents = append(l.agents, agent{"x509pop", payload, popAnswer(own)})
	}
	return l
}

// certificate issues a certificate for own. Without an issuer, it is self-signed.
func (w *world) certificate(template, issuer *x509.Certificate, own, by *ecdsa.PrivateKey) *x509.Certificate {
	w.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		w.t.Fatal(err)
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, own.Public(), by)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

// popAnswer returns a function that answers like SPIRE's agent plugin x509pop.
func popAnswer(key *ecdsa.PrivateKey) func([]byte) ([]byte, error) {
	type message struct {
		Nonce []byte `json:"nonce"`
		R     []byte `json:"r,omitempty"`
		S     []byte `json:"s,omitempty"`
	}
	type envelope struct {
		ECDSA message `json:"ecdsa_signature"`
	}
	return func(b []byte) ([]byte, error) {
		var challenge envelope
		if err := json.Unmarshal(b, &challenge); err != nil {
			return nil, err
		}
		nonce := make([]byte, len(challenge.ECDSA.Nonce))
		if _, err := rand.Read(nonce); err != nil {
			return nil, err
		}
		digest := sha256.Sum256(slices.Concat(challenge.ECDSA.Nonce, nonce))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		return json.Marshal(envelope{message{Nonce: nonce, R: r.Bytes(), S: s.Bytes()}})
	}
}
