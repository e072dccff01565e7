package evict

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A pair is a bench beside one of two servers with one database and one list on a web server.
type pair struct {
	*bench
	web    *webtest.Server
	config string
	serial int
}

func newPair(t *testing.T, hashes []string) *pair {
	t.Helper()
	p := &pair{web: webtest.NewServer(t, nil)}
	dir := t.TempDir()
	p.config = strings.NewReplacer("DIR", dir, "URL", p.web.ListURL(), "CA", p.web.CAPath).Replace(`
		source "http" "web" {
			url        = "URL"
			ca_path    = "CA"
			cache_path = "DIR/web.db"
		}`)
	p.bench = &bench{t: t}
	p.publish(hashes...)
	p.polls()
	p.bench = newBench(t, startSPIRE(t), dir, p.config, options{})
	for _, hash := range hashes {
		p.spire.add("/spire/agent/tpm/"+hash, hash)
	}
	return p
}

// publish publishes the list.
func (p *pair) publish(hashes ...string) {
	p.serial++
	var all []string
	for _, hash := range hashes {
		all = append(all, `{"hash": "`+hash+`"}`)
	}
	p.web.Answer(http.StatusOK, `{"keys": [`+strings.Join(all, ", ")+`]}`)
}

// polls is what the server beside the evicter does every poll_interval.
func (p *pair) polls() {
	p.t.Helper()
	c, err := config.Parse(p.config, "example.org")
	if err != nil {
		p.t.Fatal(err)
	}
	s, err := server.NewPreviewer(p.t.Context(), c)
	if err != nil {
		p.t.Fatal(err)
	}
	defer s.Close()
	if status := s.Status()[0]; status.Err != nil || len(status.Warnings) > 0 {
		p.t.Fatalf("%+v", status)
	}
}

// A machine that was just enrolled attests to the server that has polled the list already. The evicter beside
// the other server, which has not, must not evict it.
func TestAnotherServerIsAhead(t *testing.T) {
	var hashes []string
	for i := range 20 {
		hashes = append(hashes, hashOf(i))
	}
	p := newPair(t, hashes[:10])
	p.looks()
	p.publish(hashes...)
	for _, hash := range hashes[10:] { // as many as the brake would stop
		p.spire.add("/spire/agent/tpm/"+hash, hash)
	}
	p.looks()
	p.want("")
	p.clock = p.clock.Add(time.Minute) // this server does not reach the web server
	p.looks()
	p.want("")
	p.polls()
	p.looks()
	p.want("")
	if c := p.counts; c.Agents != 20 || c.Refused != 0 {
		t.Errorf("%+v", c)
	}

	// Who is removed is out as soon as this server has polled, without another confirmation.
	p.publish(append(hashes[1:15:15], hashes[16:]...)...)
	p.looks()
	p.want("")
	p.polls()
	p.looks()
	p.want("1 10")

	// Whom the other server has admitted by an old list is out once this server has confirmed its own.
	p.spire.add("/spire/agent/tpm/"+hashes[0], hashes[0], func(a *types.Agent) { a.X509SvidSerialNumber = "2" })
	p.clock = p.clock.Add(leastReturn)
	p.looks()
	p.want("1 10")
	p.polls()
	p.looks()
	p.want("1 10 1")
	if events := p.events(eventAlarm); len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// An evicter that has just started does not know who has attested just before, at the other server.
func TestStartedBehindAnotherServer(t *testing.T) {
	p := newPair(t, []string{hashOf(0), hashOf(1)})
	p.spire.add("/spire/agent/tpm/"+hashOf(2), hashOf(2))
	p.looks()
	p.want("")
	p.publish(hashOf(0), hashOf(1), hashOf(2))
	p.polls()
	p.looks()
	p.want("")
	p.publish(hashOf(0), hashOf(1))
	p.polls()
	p.looks()
	p.want("3")
}

// By reattest = false, an agent renews its SVID as often as it likes, and the server asks no list for that. So
// a list that was confirmed after the attestation, but before the last renewal, is held against its machine.
func TestRenewedAllTheTime(t *testing.T) {
	p := newPair(t, []string{hashOf(0), hashOf(1)})
	stranger := p.spire.add("/spire/agent/tpm/"+hashOf(2), hashOf(2), func(a *types.Agent) { a.CanReattest = false })
	p.looks()
	p.polls()
	p.spire.onList = func() { stranger.X509SvidSerialNumber += "0" }
	p.looks()
	p.want("3")
}

// A machine that attests to a server that is ahead leaves a deny list of this server right before it would be
// evicted: then the list that this server has not confirmed since says nothing either.
func TestDeniedNoMore(t *testing.T) {
	p := newPair(t, []string{hashOf(0), hashOf(1), hashOf(2), hashOf(3)})
	if err := os.Mkdir(filepath.Join(p.dir, "stolen"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.write("stolen/.mounted", "")
	p.write("stolen/"+hashOf(1), "")
	p.write("stolen/"+hashOf(4), "")
	p.write("server.hcl", p.config+`
		source "hash_dir" "stolen" {
			path   = "DIR/stolen"
			marker = ".mounted"
		}
		allow "listed" { any = ["web"] }
		deny "stolen" { any = ["stolen"] }`)
	p.spire.add("/spire/agent/tpm/"+hashOf(4), hashOf(4))
	p.after(interval)              // an edit of the configuration
	p.after(interval)              // which is followed
	p.spire.onGet = func(string) { // the first of the two is about to go
		p.spire.onGet = nil
		p.remove("stolen/" + hashOf(4))
	}
	p.after(interval)
	p.want("2")
}

// An agent that cannot be judged at the second question is counted as such, and there is the alarm: nobody may
// take it for an agent that is admitted.
func TestCountedAtTheSecondQuestion(t *testing.T) {
	p := newPair(t, []string{hashOf(0), hashOf(1)})
	p.looks()
	p.spire.add("/spire/agent/tpm/"+hashOf(2), hashOf(2))
	p.remove("web.db")
	p.clock = p.clock.Add(interval)
	p.step(t.Context())
	p.want("", alarmSources)
	if c := p.counts; c.Refused != 0 || c.CannotTell == 0 {
		t.Errorf("%+v", c)
	}
}

// If the server confirms its list no more, that is said of an agent that would be evicted otherwise. What
// another source says counts: a deny list of its own.
func TestListIsNotConfirmed(t *testing.T) {
	p := newPair(t, []string{hashOf(0), hashOf(1)})
	p.write("stolen", "# nobody\n")
	p.write("server.hcl", p.config+`
		source "hash_file" "stolen" {
			path = "DIR/stolen"
			allow_empty = true
		}
		allow "listed" { any = ["web"] }
		deny "stolen" { any = ["stolen"] }`)
	p.looks()
	p.spire.add("/spire/agent/tpm/"+hashOf(2), hashOf(2))
	p.looks()
	p.clock = p.clock.Add(time.Minute)
	p.looks()
	p.want("")
	p.unconfirmedFor = 0 // time passes
	p.looks()
	p.want("", alarmSources)
	if !strings.Contains(p.printed.String(), "was not confirmed since it has attested") {
		t.Error(p.printed)
	}
	p.write("stolen", hashOf(2)+"\n")
	p.looks()
	p.want("3")
}
