package evict

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// A bench is an evicter beside a SPIRE, whose passes and clock a test drives.
type bench struct {
	*evicter
	t       *testing.T
	spire   *fakeSPIRE
	dir     string
	clock   time.Time
	printed *strings.Builder
}

// newBench returns an evicter with a configuration, in which DIR is the bench's folder.
func newBench(t *testing.T, spire *fakeSPIRE, dir, text string, o options) *bench {
	t.Helper()
	b := &bench{t: t, spire: spire, dir: dir, clock: time.Now(), printed: &strings.Builder{}}
	b.write("server.hcl", text)
	s := &site{
		name: filepath.Join(dir, "server.hcl"), loader: config.NewLoader(), log: newLog(io.Discard, cli.Table),
		warn: func(string) {},
	}
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.socket = spire.socket
	api, err := dial(o.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.close()
		api.close()
	})
	b.evicter = newEvicter(o, api, s, b.printed, cli.JSON)
	b.now = func() time.Time { return b.clock }
	b.report.now, api.now = b.now, b.now
	return b
}

// write replaces a file in the folder.
func (b *bench) write(name, content string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path+".new", []byte(strings.ReplaceAll(content, "DIR", b.dir)), 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) remove(name string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

// after lets time pass and looks once. Lists are loaded anew before.
func (b *bench) after(d time.Duration) {
	b.t.Helper()
	b.clock = b.clock.Add(d)
	if err := b.site.previewer.Refresh(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.step(b.t.Context())
	if err := b.written(); err != nil {
		b.t.Fatal(err)
	}
}

// looks looks often enough for whoever is refused to be evicted.
func (b *bench) looks() {
	b.t.Helper()
	b.after(interval)
	b.after(interval)
	b.after(interval)
}

// want checks who was evicted so far, by the last letters of the EK hashes, and which alarms are on.
func (b *bench) want(evicted string, alarms ...string) {
	b.t.Helper()
	var got []string
	for _, path := range b.spire.evicted() {
		got = append(got, strings.TrimLeft(filepath.Base(path), "0"))
	}
	if text := strings.Join(got, " "); text != evicted {
		b.t.Errorf("evicted %q, want %q\n%s", text, evicted, b.printed)
	}
	var on []string
	for _, name := range alarmNames() {
		if _, ok := b.report.alarms[name]; ok {
			on = append(on, name)
		}
	}
	if !slices.Equal(on, alarms) {
		b.t.Errorf("the alarms are %q, want %q\n%s", on, alarms, b.printed)
	}
}

// events returns the events of a kind so far.
func (b *bench) events(kind string) (all []event) {
	b.t.Helper()
	for line := range strings.Lines(b.printed.String()) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			b.t.Fatal(err)
		}
		if e.Event == kind {
			all = append(all, e)
		}
	}
	return all
}

const listConfig = `source "hash_file" "inventory" { path = "DIR/list" }`

// list returns a list of hashes but for some.
func list(hashes []string, without ...int) string {
	var b strings.Builder
	for i, hash := range hashes {
		if !slices.Contains(without, i) {
			b.WriteString(hash + "\n")
		}
	}
	return b.String()
}

// listed returns a bench with a fleet of n machines, all of which are listed.
func listed(t *testing.T, n int, o options) (*bench, []string) {
	t.Helper()
	f, dir := startSPIRE(t), t.TempDir()
	hashes := f.fleet(n)
	if err := os.WriteFile(filepath.Join(dir, "list"), []byte(list(hashes)), 0o600); err != nil {
		t.Fatal(err)
	}
	return newBench(t, f, dir, listConfig, o), hashes
}

// One of 10,000 machines is removed from the list: exactly that one goes, and is said.
func TestOneOfTenThousand(t *testing.T) {
	b, hashes := listed(t, 10_000, options{})
	b.looks()
	b.want("")
	b.write("list", list(hashes, 4711))
	b.looks()
	b.want("1268")
	events := b.events(eventEvicted)
	if len(events) != 1 || events[0].EKHash != hashOf(4711) ||
		events[0].SPIFFEID != "spiffe://example.org/spire/agent/tpm/"+hashOf(4711) ||
		!strings.Contains(events[0].Reason, "no allow rule holds; inventory: not listed") {
		t.Errorf("%+v", events)
	}
	begun := time.Now()
	b.after(interval)
	t.Logf("a pass over %d agents took %v", b.counts.Agents, time.Since(begun))
}

// A list that is empty, or has collapsed, at once or bit by bit, evicts nobody, however small the
// fleet is. When it is mended, nothing is left of that.
func TestBrake(t *testing.T) {
	for name, tt := range map[string]struct {
		fleet, lost int
		evicted     bool
	}{
		"one of one":    {1, 1, true},
		"one of two":    {2, 1, true},
		"all of two":    {2, 2, false},
		"five of six":   {6, 5, true},
		"six of seven":  {7, 6, false},
		"five of five":  {5, 5, false},
		"five of 599":   {599, 5, true},
		"six of 599":    {599, 6, false},
		"six of 600":    {600, 6, true},
		"seven of 600":  {600, 7, false},
		"nobody of six": {6, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			b, hashes := listed(t, tt.fleet, options{})
			b.write("server.hcl", `source "hash_file" "inventory" { path = "DIR/list" allow_empty = true }`)
			b.looks()
			b.write("list", list(hashes[tt.lost:]))
			b.looks()
			if tt.evicted {
				if n := len(b.spire.evicted()); n != tt.lost {
					t.Errorf("%d were evicted, want %d\n%s", n, tt.lost, b.printed)
				}
				return
			}
			b.want("", alarmBrake)
			b.looks()
			b.want("", alarmBrake)
			b.write("list", list(hashes))
			b.looks()
			b.want("")
			if n := len(b.events(eventAlarm)); n != 1 {
				t.Errorf("%d alarms were said", n)
			}
		})
	}
}

// A list that loses a machine every few seconds has collapsed as well. After a while the same
// machines may go one by one.
func TestBrakeOverTime(t *testing.T) {
	b, hashes := listed(t, 100, options{})
	for i := range 8 {
		b.write("list", list(hashes[i+1:]))
		b.looks()
	}
	b.want("1 2 3 4 5", alarmBrake)
	b.after(brakeWindow)
	b.looks()
	b.want("1 2 3 4 5 6 7 8")
	b.write("list", list(hashes[8:])+"# the same\n")
	b.after(brakeWindow)
	b.want("1 2 3 4 5 6 7 8")
}

// Two of two go one after the other: the second is braked, too.
func TestBrakeOnTheRestOfAFleet(t *testing.T) {
	b, hashes := listed(t, 2, options{})
	b.write("list", list(hashes[1:]))
	b.looks()
	b.want("1")
	b.write("list", "# nobody\n"+strings.Repeat("ab", 32)+"\n")
	b.looks()
	b.want("1", alarmBrake)
}

// A look with --force evicts whoever is refused, and a dry run nobody, though it says who.
func TestForceAndDryRun(t *testing.T) {
	b, hashes := listed(t, 20, options{dryRun: true})
	b.write("list", list(hashes[10:]))
	b.looks()
	b.want("", alarmBrake)
	if n := len(b.events(eventWouldEvict)); n != 10 {
		t.Errorf("%d would be evicted: %s", n, b.printed)
	}
	b.dryRun, b.force = false, true
	b.looks()
	if n := len(b.spire.evicted()); n != 10 {
		t.Errorf("%d were evicted", n)
	}
	b.want("1 2 3 4 5 6 7 8 9 a")
}

// A machine that is refused for a moment only, as while somebody writes the list in place, stays.
func TestRefusedForAMoment(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.write("list", list(hashes[1:]))
	b.after(interval)
	b.write("list", list(hashes))
	b.after(interval)
	b.looks()
	b.want("")
}

// A list that is missing or torn evicts nobody, neither those that it had nor a machine that it did
// not have: the server may have loaded another one meanwhile. A machine on a deny list goes.
func TestListsDown(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.write("server.hcl", `source "hash_file" "inventory" { path = "DIR/list" }
		source "hash_file" "stolen" {
			path = "DIR/stolen"
			allow_empty = true
		}
		allow "listed" { any = ["inventory"] }
		deny "stolen" { any = ["stolen"] }`)
	b.write("stolen", "# nobody\n")
	b.looks()
	b.spire.add("/spire/agent/tpm/new", strings.Repeat("cd", 32))
	b.write("list", list(hashes)+"abc")
	b.looks()
	b.want("", alarmSources)
	b.remove("list")
	b.looks()
	b.want("", alarmSources)
	b.write("stolen", strings.ToUpper(hashes[3])+" laptop\n")
	b.looks()
	b.want("4", alarmSources)
	if reason := b.events(eventEvicted)[0].Reason; !strings.Contains(reason, "deny rule stolen holds") {
		t.Error(reason)
	}
	b.remove("stolen")
	b.looks()
	b.want("4", alarmSources)
	b.write("list", list(hashes))
	b.write("stolen", strings.ToUpper(hashes[3])+" laptop\n")
	b.looks()
	b.want("4 new")
}

// What only the machine could show is never held against it.
func TestEvidenceThatSPIREDoesNotKeep(t *testing.T) {
	for _, source := range []string{
		`source "ek_ca" "shown" { ca_path = "DIR" }`,
		`source "devid" "shown" { ca_path = "DIR" }`,
		`source "boot_policy" "shown" { path = "DIR/boot.json" }
		quote { pcrs = [0] }`,
	} {
		b, hashes := listed(t, 10, options{})
		b.write("boot.json", `{"version": 1, "profiles": []}`)
		b.write("server.hcl", listConfig+source+`
			allow "listed" { any = ["inventory"] }
			allow "shown" { any = ["shown"] }`)
		b.write("list", list(hashes[1:]))
		b.looks()
		b.want("")
		b.write("server.hcl", listConfig+source+`
			allow "both" { all = ["inventory", "shown"] }`)
		b.looks()
		b.want("1")
	}
}

// Agents that are another attestor's, banned, out already, or of a machine that SPIRE does not tell
// or tells twice stay: to delete a banned agent would lift the ban.
func TestAgentsThatStay(t *testing.T) {
	b, _ := listed(t, 10, options{})
	other := strings.Repeat("ab", 32)
	for path, change := range map[string]func(*types.Agent){
		"type":    func(a *types.Agent) { a.AttestationType = "x509pop" },
		"banned":  func(a *types.Agent) { a.Banned = true },
		"expired": func(a *types.Agent) { a.X509SvidExpiresAt = b.clock.Add(-time.Minute).Unix() },
		"none":    func(a *types.Agent) { a.Selectors = nil },
		"short":   func(a *types.Agent) { a.Selectors[0].Value = "pub_hash:" + other[1:] },
		"label":   func(a *types.Agent) { a.Selectors[0].Value = "label:pub_hash:" + other },
		"their":   func(a *types.Agent) { a.Selectors[0].Type = "k8s" },
		"two":     func(a *types.Agent) { a.Selectors[1].Value = "pub_hash:" + hashOf(1) },
		"no ID":   func(a *types.Agent) { a.Id = nil },
		"serial":  func(a *types.Agent) { a.X509SvidSerialNumber = "" },
	} {
		b.spire.add("/spire/agent/tpm/"+path, other, change)
	}
	b.looks()
	b.want("")
	if c := b.counts; c.Agents != 16 || c.Unknown != 6 || c.Refused != 0 {
		t.Errorf("%+v", c)
	}
	b.spire.add("/spire/agent/tpm/goes", strings.ToUpper(other), func(a *types.Agent) {
		a.Selectors[1].Value = "pub_hash:" + other // the same, twice
	})
	b.looks()
	b.want("goes")
}

// A machine that is listed again, or attests again, or is banned right before it would be evicted,
// stays: nothing that was seen before counts then. Whoever renews its SVID, which needs no attestation, gains
// nothing: else a stranger would stay in by renewing all the time.
func TestLookedAtLastOfAll(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(b *bench, hashes []string, a *types.Agent)
		evicted string
	}{
		"attests again": {func(_ *bench, _ []string, a *types.Agent) { a.X509SvidSerialNumber = "2" }, ""},
		"banned":        {func(_ *bench, _ []string, a *types.Agent) { a.Banned = true }, ""},
		"another machine": {func(_ *bench, hashes []string, a *types.Agent) {
			a.Selectors[0].Value = "pub_hash:" + hashes[1]
		}, ""},
		"nothing": {func(*bench, []string, *types.Agent) {}, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			b, hashes := listed(t, 10, options{})
			b.write("list", list(hashes[1:]))
			b.after(interval)
			b.spire.onGet = func(string) { tt.change(b, hashes, b.spire.agents[0]) }
			b.after(interval)
			b.want(tt.evicted)
		})
	}
	t.Run("attests between the looks", func(t *testing.T) {
		b, hashes := listed(t, 10, options{})
		b.looks()
		b.write("list", list(hashes[1:]))
		b.after(interval)
		b.spire.agents[0].X509SvidSerialNumber = "2"
		b.after(interval)
		b.want("") // whoever has admitted it may know better
		b.after(interval)
		b.want("1")
	})
	t.Run("renews", func(t *testing.T) { // as an agent does by reattest = false
		b, hashes := listed(t, 10, options{})
		b.spire.agents[0].CanReattest = false
		b.write("list", list(hashes[1:]))
		renew := func(string) { b.spire.agents[0].X509SvidSerialNumber += "0" }
		b.after(interval)
		renew("")
		b.spire.onGet = renew
		b.after(interval)
		b.want("1")
	})
	t.Run("listed again", func(t *testing.T) {
		b, hashes := listed(t, 10, options{})
		b.write("list", list(hashes[1:]))
		b.after(interval)
		b.after(time.Second) // too early
		b.write("list", list(hashes))
		b.clock = b.clock.Add(interval)
		b.step(t.Context()) // it has not noticed the new list
		b.want("")
	})
}

// A machine that is removed right after it has attested is out as fast as any other.
func TestRemovedAtOnce(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.looks()
	b.spire.add("/spire/agent/tpm/new", strings.Repeat("ab", 32))
	b.looks()
	b.want("new")
	b.write("list", list(hashes[1:]))
	b.looks()
	b.want("new 1")
}

// Two evicters beside two servers evict each machine once, and the slower one has not failed.
func TestTwoEvicters(t *testing.T) {
	one, hashes := listed(t, 10, options{})
	two := newBench(t, one.spire, one.dir, listConfig, options{})
	one.write("list", list(hashes[1:]))
	two.after(interval)
	one.spire.onDelete = func(string) {
		one.spire.onDelete = nil
		two.after(interval)
	}
	one.after(interval)
	one.after(interval)
	one.want("1")
	two.want("1")
	if n := one.counts.Refused; n != 0 {
		t.Errorf("%d are refused and still in", n)
	}
	if len(one.events(eventGone)) != 1 || len(two.events(eventEvicted)) != 1 {
		t.Errorf("%s\n%s", one.printed, two.printed)
	}
}

// A server that admits whom this configuration refuses, since it was not told to read its
// configuration again, is not fought: the machine is evicted again at growing intervals, and there is
// an alarm.
func TestServerAdmitsAgain(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.write("list", list(hashes[1:]))
	var when []time.Duration
	begun := b.clock
	for range 1800 {
		before := len(b.spire.evicted())
		b.clock = b.clock.Add(interval)
		b.step(t.Context())
		if n := len(b.spire.evicted()); n > before {
			when = append(when, b.clock.Sub(begun).Round(10*time.Second))
			b.spire.add("/spire/agent/tpm/"+hashes[0], hashes[0], func(a *types.Agent) {
				a.X509SvidSerialNumber, a.X509SvidExpiresAt = strconv.Itoa(n+1), b.clock.Add(time.Hour).Unix()
			})
		}
	}
	if len(when) < 6 || len(when) > 10 || when[1]-when[0] > 20*time.Second {
		t.Errorf("evicted within an hour at %v", when)
	}
	if len(b.events(eventAlarm)) == 0 || !strings.Contains(b.printed.String(), "SIGUSR1") {
		t.Errorf("no alarm: %s", b.printed)
	}
	b.write("list", list(hashes)) // it may be admitted after all
	b.looks()
	if len(b.returns) > 0 {
		t.Error("the machine is remembered")
	}
}

// While SPIRE does not answer, or restarts, or refuses to delete, there is an alarm, and nothing else
// is lost.
func TestSPIREIsGone(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.looks()
	b.spire.fail(status.Error(codes.Internal, "the datastore is down"))
	b.write("list", list(hashes[1:]))
	b.looks()
	b.want("", alarmSPIRE)
	b.spire.fail(nil)
	b.spire.server.Stop()
	b.looks()
	b.want("", alarmSPIRE)
	b.spire.start(t)
	conn := b.evicter.spire.conn
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		conn.Connect()
		if !conn.WaitForStateChange(t.Context(), state) {
			t.Fatal("not connected")
		}
	}
	b.looks()
	b.want("1")
}

// Before SPIRE has answered for the first time, the status has no number of agents, and not zero: nobody may
// take a server that does not answer for an empty fleet.
func TestStatusBeforeTheFirstLook(t *testing.T) {
	b, _ := listed(t, 10, options{})
	b.spire.fail(status.Error(codes.Internal, "the datastore is down"))
	b.after(interval)
	if strings.Contains(b.metrics(), "agents") {
		t.Error(b.metrics())
	}
	b.spire.fail(nil)
	b.after(interval)
	if !strings.Contains(b.metrics(), "tpm_attestor_evict_agents 10\n") {
		t.Error(b.metrics())
	}
}

// Agents that SPIRE lists twice do not make the fleet larger than it is for the brake, and pages without an end
// are an alarm, and fill no memory.
func TestStrangeAnswers(t *testing.T) {
	b, hashes := listed(t, 599, options{})
	b.spire.answers = func(rsp *agentv1.ListAgentsResponse) { rsp.Agents = append(rsp.Agents, rsp.Agents...) }
	b.write("list", list(hashes[6:]))
	b.looks()
	b.want("", alarmBrake)
	if n := b.counts.Agents; n != 599 {
		t.Errorf("%d agents", n)
	}
	b.spire.answers = func(rsp *agentv1.ListAgentsResponse) {
		if rsp.NextPageToken == "" {
			rsp.NextPageToken = "0"
		}
	}
	b.write("list", list(hashes[1:]))
	b.looks()
	b.want("", alarmBrake, alarmSPIRE) // what was said about the agents stays
	b.spire.answers = nil
	b.looks()
	b.want("1")
}

// An agent that SPIRE does not delete keeps no other agent in.
func TestOneIsNotDeleted(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.spire.deletes = func(id *types.SPIFFEID) error {
		if filepath.Base(id.Path) == hashOf(0) {
			return status.Error(codes.Internal, "its record is damaged")
		}
		return b.spire.remove(id)
	}
	b.write("list", list(hashes[3:]))
	b.looks()
	b.want("2 3", alarmSPIRE)
	b.spire.deletes = nil
	b.looks()
	b.want("2 3 1")
}

// The brake counts an agent that is gone although SPIRE did not say so in time: else a list that loses its
// entries one by one would empty the fleet of a SPIRE that is slow.
func TestBrakeWithoutAnswers(t *testing.T) {
	b, hashes := listed(t, 100, options{})
	b.spire.deletes = func(id *types.SPIFFEID) error {
		if err := b.spire.remove(id); err != nil {
			return err
		}
		return status.Error(codes.DeadlineExceeded, "context deadline exceeded")
	}
	for i := range 8 {
		b.write("list", list(hashes[i+1:]))
		b.looks()
	}
	b.want("1 2 3 4 5", alarmBrake)
}

// The configuration of another server evicts nobody, and neither does one that a server refuses.
// An edit is followed once the file was left alone, and until then nobody knows which configuration
// the server runs.
func TestConfigurationChanges(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.write("list", list(hashes[1:]))
	b.after(interval)
	b.write("server.hcl", listConfig+"\n# edited")
	b.after(interval)
	b.want("")
	b.write("server.hcl", "source {")
	b.after(interval)
	b.want("")
	b.looks()
	b.want("1", alarmConfiguration) // the server goes on with the last good one
	b.remove("server.hcl")
	b.looks()
	b.want("1", alarmConfiguration)
	b.write("server.hcl", `server { trust_domain = "other.example" } plugins { NodeAttestor "tpm" { plugin_data {`+
		listConfig+`} } }`)
	b.write("list", list(hashes[2:]))
	b.looks()
	b.looks()
	b.want("1", alarmConfiguration)
	b.write("server.hcl", `server { trust_domain = "example.org" } plugins { NodeAttestor "tpm" { plugin_data {`+
		listConfig+`} } }`)
	b.looks()
	b.looks()
	b.want("1 2")
	b.write("denied", hashes[5]+"\n")
	b.write("server.hcl", listConfig+`
		source "hash_file" "denied" { path = "DIR/denied" }
		allow "listed" { any = ["inventory"] }
		deny "denied" { any = ["denied"] }`)
	b.looks()
	b.looks()
	b.want("1 2 6")
}

// A change of a file of plugin_data_file is followed as one of the configuration that names it: it is the file that an
// operator edits, and SPIRE reads it again on SIGUSR1.
func TestDataFileChanges(t *testing.T) {
	f, dir := startSPIRE(t), t.TempDir()
	hashes := f.fleet(10)
	data := func(more string) string { return strings.ReplaceAll(listConfig, "DIR", dir) + more }
	for name, content := range map[string]string{"list": list(hashes), "tpm.hcl": data("")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := newBench(t, f, dir, `server { trust_domain = "example.org" } plugins { NodeAttestor "tpm" {
		plugin_data_file = "DIR/tpm.hcl" } }`, options{})
	b.write("list", list(hashes[1:]))
	b.after(interval)
	b.write("tpm.hcl", data("\n# edited"))
	b.after(interval)
	b.want("")
	b.write("tpm.hcl", "source {")
	b.after(interval)
	b.want("")
	b.looks()
	b.want("1", alarmConfiguration) // the server goes on with the last good one
	if reason := b.report.alarms[alarmConfiguration].reason; !strings.Contains(reason, dir+"/tpm.hcl:1: ") {
		t.Errorf("the alarm is %s", reason)
	}
	b.remove("tpm.hcl")
	b.looks()
	b.looks()
	b.want("1", alarmConfiguration)
	b.write("denied", hashes[5]+"\n")
	b.write("tpm.hcl", data(`
		source "hash_file" "denied" { path = "`+dir+`/denied" }
		allow "listed" { any = ["inventory"] }
		deny "denied" { any = ["denied"] }`))
	b.looks()
	b.looks()
	b.want("1 6")
}

// A configuration that never rests evicts nobody, since nobody knows which the server runs, and that is an alarm:
// whoever can write the file must not keep machines in without anybody noticing.
func TestRestlessConfiguration(t *testing.T) {
	for name, edits := range map[string][]string{
		"another each time": {"# one", "# two", "# three"},
		"back and forth":    {"", "# edited"},
		"every other time":  {"", "", "# edited", "# edited"},
		"refused":           {"", "", "source {", "source {"},
	} {
		t.Run(name, func(t *testing.T) {
			b, hashes := listed(t, 10, options{})
			b.looks()
			b.write("list", list(hashes[1:]))
			for i := range 16 {
				b.write("server.hcl", listConfig+"\n"+edits[i%len(edits)])
				b.after(restlessFor / 12)
			}
			b.want("", alarmConfiguration)
			if !strings.Contains(b.printed.String(), "again and again") {
				t.Error(b.printed)
			}
			b.write("server.hcl", listConfig)
			b.looks()
			b.looks()
			b.want("1")
		})
	}
}

// A configuration that is edited while the sources are asked evicts nobody by what was configured before: the
// server may have been told of the new configuration already.
func TestEditedDuringTheLook(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.write("list", list(hashes[1:]))
	b.after(interval)
	b.spire.onList = func() {
		b.spire.onList = nil
		b.write("server.hcl", listConfig+"\n# edited")
	}
	b.after(interval)
	b.want("", alarmConfiguration)
	b.looks()
	b.looks()
	b.want("1")
}

// The evicter runs until it is told to end, and then ends at once, with nothing left behind; its
// status says what it has seen.
func TestRun(t *testing.T) {
	b, hashes := listed(t, 10, options{status: filepath.Join(t.TempDir(), "tpm.prom")})
	b.interval, b.confirmAfter = time.Millisecond, time.Millisecond
	b.now = time.Now
	b.write("list", list(hashes[1:]))
	gone := make(chan struct{})
	b.spire.onDelete = func(string) { close(gone) }
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := b.run(ctx); err != nil {
			t.Error(err)
		}
	})
	<-gone
	cancel()
	wait.Wait()
	b.spire.server.GracefulStop() // the call that was cut off has ended
	b.want("1")
}

// An evicter whose status cannot be written goes on, and says so once: a disk that is full leaves nobody
// in.
func TestStatusCannotBeWritten(t *testing.T) {
	b, hashes := listed(t, 10, options{status: filepath.Join(t.TempDir(), "none", "tpm.prom")})
	b.interval, b.confirmAfter = time.Millisecond, time.Millisecond
	b.now = time.Now
	var warned []string
	b.site.warn = func(w string) { warned = append(warned, w) }
	b.write("list", list(hashes[1:]))
	ctx, cancel := context.WithCancel(t.Context())
	b.spire.onDelete = func(string) { cancel() }
	if err := b.run(ctx); err != nil {
		t.Error(err)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "write the status") {
		t.Errorf("%q", warned)
	}
}

// Nobody goes without a line about it: once a line could not be printed, everybody else stays.
func TestLineCannotBePrinted(t *testing.T) {
	b, hashes := listed(t, 10, options{})
	b.write("list", list(hashes[2:]))
	b.after(interval)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.Close(), in.Close()); err != nil {
		t.Fatal(err)
	}
	b.report.out = in
	b.clock = b.clock.Add(interval)
	b.step(t.Context())
	b.want("1")
}

// Nobody may take for done what could not be printed or written.
func TestUnwritable(t *testing.T) {
	b, _ := listed(t, 1, options{status: filepath.Join(t.TempDir(), "none", "tpm.prom")})
	if err := b.once(t.Context()); err == nil || !strings.Contains(err.Error(), "write the status") {
		t.Error(err)
	}
	b.report.err = errSocket
	if err := b.once(t.Context()); err == nil || !strings.Contains(err.Error(), "print") {
		t.Error(err)
	}
}
