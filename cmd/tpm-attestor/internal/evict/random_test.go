package evict

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// A truth is what the lists of a site say, and so what its server decides.
type truth struct {
	*bench
	listed, denied [24]bool
	torn, mute     bool // the list of machines, and the deny list, cannot be read
	serial         int
	// serves and denies are the last good lists, which the server follows.
	serves, denies [24]bool
}

// refuses reports whether the server refuses a machine by lists that are good.
func (s *truth) refuses(i int) bool {
	return !s.serves[i] && !s.torn || s.denies[i] && !s.mute
}

func (s *truth) admits(i int) bool { return s.serves[i] && !s.denies[i] }

// publish writes both lists. They look old, so that nobody waits for their writer.
func (s *truth) publish() {
	s.t.Helper()
	s.serial++
	if !s.torn {
		s.serves = s.listed
	}
	if !s.mute {
		s.denies = s.denied
	}
	write := func(name string, these [24]bool, broken bool) {
		var text strings.Builder
		fmt.Fprintf(&text, "# %d\n", s.serial)
		for i, this := range these {
			if this {
				text.WriteString(hashOf(i) + "\n")
			}
		}
		if broken {
			text.WriteString("torn")
		}
		path, old := filepath.Join(s.dir, name), time.Now().Add(-time.Hour)
		if err := os.WriteFile(path+".new", []byte(text.String()), 0o600); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Chtimes(path+".new", old, old); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			s.t.Fatal(err)
		}
	}
	write("list", s.listed, s.torn)
	write("denied", s.denied, s.mute)
}

// attest is what an agent does now and then: if the server admits it, it is in, by a new SVID; if not,
// nothing changes.
func (s *truth) attest(i int) {
	if !s.admits(i) {
		return
	}
	id := &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/tpm/" + strconv.Itoa(i)}
	_ = s.spire.remove(id)
	s.spire.deleted = nil
	s.serial++
	s.spire.add(id.Path, hashOf(i), func(a *types.Agent) {
		a.X509SvidSerialNumber, a.X509SvidExpiresAt = strconv.Itoa(s.serial), s.clock.Add(1000*time.Hour).Unix()
	})
}

func (s *truth) isIn(i int) bool {
	return slices.ContainsFunc(s.spire.agents, func(a *types.Agent) bool {
		return a.Id.Path == "/spire/agent/tpm/"+strconv.Itoa(i)
	})
}

// step changes something.
func (s *truth) step(r *rand.Rand) {
	i := r.IntN(len(s.listed))
	switch r.IntN(24) {
	case 0, 1:
		s.listed[i] = !s.listed[i] || r.IntN(8) > 0
	case 2:
		s.denied[i] = !s.denied[i] && r.IntN(3) == 0
	case 3:
		s.torn = !s.torn && r.IntN(3) == 0
	case 4:
		s.mute = !s.mute && r.IntN(3) == 0
	default:
		s.attest(i)
		return
	}
	s.publish()
}

// Whatever happens to lists and agents, in whatever order: at the moment at which an agent is evicted,
// the server refuses its machine, and by a list that can be read. When all is quiet, everybody is out who
// is refused.
func TestRandomSites(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			dir := t.TempDir()
			s := &truth{bench: &bench{t: t, dir: dir}}
			for i := range s.listed {
				s.listed[i] = true
			}
			s.publish()
			s.bench = newBench(t, startSPIRE(t), dir, `
				source "hash_file" "list" { path = "DIR/list" }
				source "hash_file" "denied" {
					path = "DIR/denied"
					allow_empty = true
				}
				allow "listed" { any = ["list"] }
				deny "denied" { any = ["denied"] }`, options{})
			r := rand.New(rand.NewPCG(11, seed))
			evicted := 0
			s.spire.onDelete = func(path string) {
				i, _ := strconv.Atoi(filepath.Base(path))
				if evicted++; !s.refuses(i) {
					t.Errorf("machine %d is evicted, served %v, denied %v, torn %v, mute %v",
						i, s.serves[i], s.denies[i], s.torn, s.mute)
				}
			}
			s.spire.onList = func() { s.step(r) } // before the sources are asked
			for range 600 {
				s.step(r)
				s.clock = s.clock.Add(time.Duration(r.IntN(180)) * time.Second)
				if r.IntN(3) > 0 { // it may have noticed the last change, or not
					if err := s.site.previewer.Refresh(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				s.evicter.step(t.Context())
			}
			s.spire.onList = nil
			s.torn, s.mute = false, false
			s.publish()
			for range 40 {
				s.after(10 * time.Minute)
			}
			for i := range s.listed {
				if in := s.isIn(i); in && s.refuses(i) && len(s.report.alarms) == 0 {
					t.Errorf("machine %d is still in", i)
				}
			}
			if evicted < 10 {
				t.Errorf("%d were evicted: this test tests too little", evicted)
			}
			t.Logf("%d were evicted; alarms: %v", evicted, s.report.alarms)
		})
	}
}
