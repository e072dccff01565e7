package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable/sqltest"
)

// out is how long a machine may keep its agent after the plugin's source serves its removal.
const out = 10 * time.Second

// An evicter is a running `tpm-attestor evict`.
type evicter struct {
	*spiretest.Process
	w      *world
	status string
}

// evicter starts the evicter of a server, whose plugin's configuration is a file of its own.
func (w *world) evicter(s *spiretest.Server) *evicter {
	w.t.Helper()
	e := &evicter{w: w, status: filepath.Join(w.folder("evict"), "tpm.prom")}
	cmd := exec.Command(w.programs.Tool, "evict", s.DataPath, "--socket", s.Socket, "--status", e.status)
	var err error
	if e.Process, err = spiretest.Start("tpm-attestor evict", cmd, e.status+".log", false); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(e.Stop)
	w.keepLog(e.Process)
	w.soon(func() error {
		_, err := e.metric("last_pass_timestamp_seconds")
		return err
	})
	return e
}

// metric returns a metric in the status file.
func (e *evicter) metric(name string) (float64, error) {
	text, err := os.ReadFile(e.status)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^tpm_attestor_evict_` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no metric %s:\n%s", name, text)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// looks waits until the evicter has looked at all agents often enough to have evicted every machine that
// is refused now: twice, and once more because one look may be under way already.
func (e *evicter) looks() {
	e.w.t.Helper()
	last := -1.0
	for range 4 {
		e.w.soon(func() error {
			at, err := e.metric("last_pass_timestamp_seconds")
			if err == nil && at == last {
				err = errors.New("the evicter has not looked again")
			}
			if err == nil {
				last = at
			}
			return err
		})
	}
}

// want waits for the value of a metric.
func (e *evicter) want(name string, value float64) {
	e.w.t.Helper()
	e.w.soon(func() error {
		got, err := e.metric(name)
		if err == nil && got != value {
			err = fmt.Errorf("%s is %v, want %v", name, got, value)
		}
		return err
	})
}

// attested attests with TPMs, which must be admitted.
func (w *world) attested(s *spiretest.Server, tpms ...*attestortest.TPM) {
	w.t.Helper()
	for _, tpm := range tpms {
		w.wantCodeSoon(s, tpm, codes.OK)
	}
}

// hasAgents returns for how many of the TPMs the server has an agent.
func (w *world) hasAgents(s *spiretest.Server, tpms ...*attestortest.TPM) (n int) {
	w.t.Helper()
	api := w.agentAPI(s)
	for _, tpm := range tpms {
		id := &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/tpm/" + tpm.EKHash()}
		switch _, err := api.GetAgent(w.ctx, &agentv1.GetAgentRequest{Id: id}); status.Code(err) {
		case codes.OK:
			n++
		case codes.NotFound:
		default:
			w.t.Fatal(err)
		}
	}
	return n
}

// wantOut waits until the server has no agents of these TPMs, and logs how long that took.
func (w *world) wantOut(s *spiretest.Server, since time.Time, tpms ...*attestortest.TPM) {
	w.t.Helper()
	ctx, cancel := context.WithDeadline(w.ctx, since.Add(out+busy))
	defer cancel()
	if err := spiretest.Poll(ctx, func() error {
		if n := w.hasAgents(s, tpms...); n > 0 {
			return fmt.Errorf("%d of %d are still in", n, len(tpms))
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("out %v after the removal", time.Since(since).Round(time.Millisecond))
}

// An eviction site has a server with a list of each kind.
type evictionSite struct {
	*world
	server         *spiretest.Server
	dir, stolen    string
	file, more     string
	web            *webServer
	database       *sqltest.Server
	byDir, byFile  []*attestortest.TPM
	byWeb, byTable []*attestortest.TPM
}

// table executes statements in the database.
func (s *evictionSite) table(database, statements string) {
	s.t.Helper()
	if _, err := s.database.Exec(s.ctx, database, statements); err != nil {
		s.t.Fatal(err)
	}
}

// evictionSite starts the server. Each list has machines of its own.
func newEvictionSite(t *testing.T) *evictionSite {
	t.Helper()
	s := &evictionSite{world: newWorldFor(t, 3*time.Minute)}
	db, err := sqltest.Postgres()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	s.database = db
	s.table("postgres", "CREATE DATABASE spire;")
	schema, err := os.ReadFile("../examples/postgres/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	s.table("spire", string(schema))
	s.dir, s.stolen = s.folder("hashes"), s.folder("stolen")
	lists := s.folder("lists")
	s.file, s.more = filepath.Join(lists, "file.txt"), filepath.Join(lists, "more.txt")
	s.write(filepath.Join(s.stolen, ".mounted"), "")
	s.write(s.more, strings.Repeat("ab", 32)+"\n")
	s.web = s.webServer()
	for i := range 3 {
		s.byDir, s.byFile = append(s.byDir, stranger(t, i)), append(s.byFile, stranger(t, 10+i))
		s.byWeb, s.byTable = append(s.byWeb, stranger(t, 20+i)), append(s.byTable, stranger(t, 30+i))
	}
	s.lay()
	s.web.start()
	return s
}

// lay writes all lists.
func (s *evictionSite) lay() {
	s.t.Helper()
	for _, tpm := range s.byDir {
		s.write(filepath.Join(s.dir, tpm.EKHash()), "")
	}
	s.layFile(s.byFile...)
	s.layWeb(1, s.byWeb...)
	for _, tpm := range s.byTable {
		s.table("spire", "INSERT INTO tpm_machines (ek_hash) VALUES ('"+tpm.EKHash()+"');")
	}
}

func (s *evictionSite) layFile(tpms ...*attestortest.TPM) {
	s.t.Helper()
	var list strings.Builder
	for _, tpm := range tpms {
		list.WriteString(tpm.EKHash() + "\n")
	}
	s.replace(s.file, list.String())
}

func (s *evictionSite) layWeb(serial int, tpms ...*attestortest.TPM) {
	s.t.Helper()
	var entries []entry
	for _, tpm := range tpms {
		entries = append(entries, entry{Hash: tpm.EKHash()})
	}
	s.web.publish(s.jsonList(serial, entries...))
}

// config is the plugin's configuration, with further rules.
func (s *evictionSite) config(more string) string {
	dsn := filepath.Join(s.dir, "..", "dsn")
	s.write(dsn, "postgres://spire_tpm:change-me@"+s.database.Address()+"/spire\n")
	return fmt.Sprintf(`
		source "hash_dir"  "dir"    { path = %q }
		source "hash_file" "file"   { path = %q }
		source "hash_dir"  "stolen" {
			path   = %q
			marker = ".mounted"
		}
		source "sql" "table" {
			dialect  = "postgres"
			dsn_path = %q
			ca_path  = %q
		}
		%s
		allow "dir"    { any = ["dir"] }
		allow "file"   { any = ["file"] }
		allow "web"    { any = ["web"] }
		allow "table"  { any = ["table"] }
		deny  "stolen" { any = ["stolen"] }
		%s`, s.dir, s.file, s.stolen, dsn, s.database.CAPath,
		s.web.source("web", `poll_interval = "1s"`, fmt.Sprintf("cache_path = %q", filepath.Join(s.dir, "..", "web.db"))),
		more)
}

// A machine is evicted within ten seconds, in one step, if it is removed from a list of any kind, if a deny
// list gets it, or if a reloaded rule leaves it out. Its agent ends, and is refused when it attests again.
// All other machines stay. No machine is evicted while all lists are down, or because a list is empty.
func TestEvict(t *testing.T) {
	s := newEvictionSite(t)
	s.server = s.world.server(spiretest.ServerConfig{PluginData: s.config(""), DataFile: true})
	s.attested(s.server, s.byDir...)
	s.attested(s.server, s.byFile...)
	s.attested(s.server, s.byWeb...)
	s.attested(s.server, s.byTable...)
	m := s.machine(nil)
	s.list(s.dir, m)
	a, known := s.admitted(s.server, m)
	s.wantWorkloadSVID(s.server, a, known)
	e := s.evicter(s.server)
	e.want("agents", 13)
	e.want("agents_refused", 0)

	t.Log("one of each kind at once, which is as many as may go")
	began := time.Now()
	s.unlist(s.dir, m)
	s.layFile(s.byFile[1:]...)
	s.layWeb(2, s.byWeb[1:]...)
	s.table("spire", "DELETE FROM tpm_machines WHERE ek_hash = '"+s.byTable[0].EKHash()+"';")
	s.write(filepath.Join(s.stolen, s.byDir[0].EKHash()), "")
	s.wantOut(s.server, began, s.byFile[0], s.byWeb[0], s.byTable[0], s.byDir[0])
	ctx, cancel := context.WithTimeout(s.ctx, out+busy)
	defer cancel()
	if err := a.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the evicted agent still runs: %v", err)
	}
	t.Logf("the agent ended %v after the removal", time.Since(began).Round(time.Millisecond))
	if err := s.fetch(a); err == nil {
		t.Error("a workload on the evicted machine still gets an SVID")
	}
	s.refused(s.server, m)
	e.looks()
	s.wantIn(8)

	t.Log("an evicter that was restarted; a deny list of a rule that is reloaded")
	e.Stop()
	e = s.evicter(s.server)
	s.write(s.more, s.byWeb[1].EKHash()+"\n")
	began = time.Now()
	s.reconfigure(s.server, s.config(fmt.Sprintf(`
		source "hash_file" "more" { path = %q }
		deny "more" { any = ["more"] }`, s.more)), "Plugin reconfigured")
	s.wantOut(s.server, began, s.byWeb[1])
	e.looks()
	s.wantIn(7)

	t.Log("an empty list")
	if err := os.Rename(s.dir, s.dir+".away"); err != nil {
		t.Fatal(err)
	}
	s.layFile() // which is torn, too: a text without entries
	e.want(`alarm{alarm="sources"}`, 1)
	s.table("spire", "TRUNCATE tpm_machines;")
	s.layWeb(3)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.layFile(s.byTable[0])
	e.want(`alarm{alarm="brake"}`, 1)
	e.looks()
	s.wantIn(7)

	t.Log("all lists down")
	s.table("spire", "DROP TABLE tpm_machines;")
	s.web.stop()
	for _, path := range []string{s.dir, s.file, s.stolen, s.more} {
		if err := os.Rename(path, path+".down"); err != nil {
			t.Fatal(err)
		}
	}
	e.want("agents_cannot_tell", 7)
	e.want(`alarm{alarm="brake"}`, 0)
	e.looks()
	s.wantIn(7)
}

// wantIn checks how many of the machines are in.
func (s *evictionSite) wantIn(n int) {
	s.t.Helper()
	all := append(append(append(append([]*attestortest.TPM{}, s.byDir...), s.byFile...), s.byWeb...), s.byTable...)
	if got := s.hasAgents(s.server, all...); got != n {
		s.t.Errorf("%d machines are in, want %d", got, n)
	}
}

// Only a machine itself can show its EK certificate, its DevID and its boot. The evicter keeps a machine that
// these could admit. If the rule needs a list as well, and the list does not have the machine, it is evicted.
func TestEvictWithoutEvidence(t *testing.T) {
	w := newWorld(t)
	ca := attestortest.NewCA(t, "Vendor CA")
	certified := func(number int) *attestortest.TPM {
		return attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: number, CA: ca})
	}
	vouched, both, gone := certified(1), certified(2), certified(3)
	hashes, lists := w.folder("hashes"), w.folder("lists")
	w.write(filepath.Join(lists, "ca.pem"), string(ca.PEM()))
	w.write(filepath.Join(lists, "boot.json"),
		`{"version": 1, "profiles": [{"name": "p", "pcrs": {"sha256": {"0": ["`+strings.Repeat("00", 32)+`"]}}}]}`)
	config := func(rules string) string {
		return fmt.Sprintf(`
			source "hash_dir"    "dir"     { path = %q }
			source "ek_ca"       "vendors" { ca_path = %q }
			source "devid"       "laptops" { ca_path = %[2]q }
			source "boot_policy" "golden"  { path = %q }
			quote { pcrs = [0] }
			%s`, hashes, filepath.Join(lists, "ca.pem"), filepath.Join(lists, "boot.json"), rules)
	}
	s := w.server(spiretest.ServerConfig{DataFile: true, PluginData: config(`
		allow "vouched" { any = ["vendors"] }
		allow "booted"  { all = ["dir", "golden"] }
		allow "device"  { all = ["dir", "laptops"] }`)})
	for _, tpm := range []*attestortest.TPM{both, gone} {
		w.write(filepath.Join(hashes, tpm.EKHash()), "")
	}
	w.attested(s, vouched, both, gone)
	e := w.evicter(s)
	if err := os.Remove(filepath.Join(hashes, gone.EKHash())); err != nil {
		t.Fatal(err)
	}
	e.looks()
	if n := w.hasAgents(s, vouched, both, gone); n != 3 {
		t.Errorf("%d are in, want all 3", n)
	}
	e.want("agents_refused", 0)

	w.write(filepath.Join(hashes, vouched.EKHash()), "")
	began := time.Now()
	w.reconfigure(s, config(`
		allow "vouched" { all = ["dir", "vendors"] }
		allow "booted"  { all = ["dir", "golden"] }
		allow "device"  { all = ["dir", "laptops"] }`), "Plugin reconfigured")
	w.wantOut(s, began, gone)
	e.looks()
	if n := w.hasAgents(s, vouched, both); n != 2 {
		t.Errorf("%d are in, want both that are listed", n)
	}
}

// layEvict lays the lists of the example, and its configuration, whose plugin_data is in a file of its own.
func (s *site) layEvict() {
	for _, m := range []*attestortest.TPM{s.one, s.two, s.three} {
		s.put("/srv/tpm/hashes/"+m.EKHash(), "")
	}
	s.put("/srv/tpm/stolen/.mounted", "")
	s.put("/etc/spire/server.conf", s.moved(s.read("server.conf")))
	s.put("/etc/spire/tpm.hcl", s.moved(s.read("tpm.hcl")))
}

// evictInOneStep starts evict as the unit of the example does.
func (s *site) evictInOneStep(server *spiretest.Server) {
	unit := s.read("tpm-attestor-evict.service")
	command := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(unit)
	s.mkdir("/run")
	line := command[1]
	for _, v := range regexp.MustCompile(`(?m)^Environment=([A-Z]+)=(.*)$`).FindAllStringSubmatch(unit, -1) {
		line = strings.ReplaceAll(line, "${"+v[1]+"}", v[2])
	}
	args := strings.Fields(strings.NewReplacer(
		"/usr/bin/tpm-attestor", s.programs.Tool, "/run/spire-server/private/api.sock", server.Socket,
		"/etc/", s.root+"/etc/", "/run/tpm-attestor-evict/", s.root+"/run/",
	).Replace(line))
	e := &evicter{w: s.world, status: s.root + "/run/tpm-attestor-evict.prom"}
	var err error
	if e.Process, err = spiretest.Start("evict", exec.Command(args[0], args[1:]...), s.root+"/evict.log", false); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(e.Stop)
	s.keepLog(e.Process)
	s.admits(server, s.one, s.two, s.three)
	e.want("agents", 3)
	began := time.Now()
	if err := os.Remove(s.root + "/srv/tpm/hashes/" + s.one.EKHash()); err != nil {
		s.t.Fatal(err)
	}
	s.put("/srv/tpm/stolen/"+s.two.EKHash(), "")
	s.wantOut(server, began, s.one, s.two)
	line = s.waitLog(e.Process, 0, "evicted spiffe://example.org/spire/agent/tpm/"+s.one.EKHash())
	if !strings.HasSuffix(line, ": no allow rule holds; inventory: not listed; stolen: not listed") {
		s.t.Errorf("the README says otherwise: %s", line)
	}
	s.refuses(server, s.one, s.two)
	if n := s.hasAgents(server, s.three); n != 1 {
		s.t.Error("the third has gone, too")
	}
	s.verifyUnit(strings.Replace(unit, command[0], "ExecStart=/bin/true", 1))
}

// verifyUnit has systemd check a unit, if systemd is there.
func (s *site) verifyUnit(unit string) {
	s.t.Helper()
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return
	}
	path := filepath.Join(s.root, "tpm-attestor-evict.service")
	s.write(path, unit)
	if out, err := exec.CommandContext(s.ctx, program, "verify", "--man=no", path).CombinedOutput(); err != nil ||
		strings.Contains(string(out), filepath.Base(path)) {
		s.t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

var evictFleet = flag.Int("evict.fleet", 200, "agents that SPIRE has in TestEvictOneOfAFleet")

// One machine of a large fleet is removed: exactly that one goes, within ten seconds. The test logs how long
// a look at the whole fleet takes; -evict.fleet=10000 makes it a large one.
func TestEvictOneOfAFleet(t *testing.T) {
	const each = 20 * time.Millisecond
	w := newWorldFor(t, 2*time.Minute+time.Duration(*evictFleet)*each)
	agents, tpms := w.machines(0, *evictFleet, nil)
	hashes, gone := w.folder("hashes"), tpms[*evictFleet/2]
	for _, tpm := range tpms {
		w.write(filepath.Join(hashes, tpm.EKHash()), "")
	}
	config := inventory("hash_dir", hashes)
	config.DataFile, config.LogLevel = true, "INFO"
	s := w.server(config)
	began := time.Now()
	w.attestAll(s, &load{}, agents)
	t.Logf("%d machines attested in %v", *evictFleet, time.Since(began))
	e := w.evicter(s)
	e.want("agents", float64(*evictFleet))
	took, err := e.metric("pass_seconds")
	t.Logf("a look at all of them took %vs: %v", took, err)

	began = time.Now()
	if err := os.Remove(filepath.Join(hashes, gone.EKHash())); err != nil {
		t.Fatal(err)
	}
	w.wantOut(s, began, gone)
	e.looks()
	e.want("agents", float64(*evictFleet-1))
	e.want("evicted_total", 1)
	cpu, server, begun := w.cpu(e.PID()), w.cpu(s.PID()), time.Now()
	e.looks()
	t.Logf("it takes %.1f %% of a core, and SPIRE %.1f %%", float64(w.cpu(e.PID())-cpu)/float64(time.Since(begun))*100,
		float64(w.cpu(s.PID())-server)/float64(time.Since(begun))*100)
}
