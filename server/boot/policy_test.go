package boot_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// judged are the PCRs that these tests quote.
var judged = []int{0, 2, 4, 7}

// fieldBoots returns what real machines prove of their boot, by the names of their logs, of
// those whose log has the SHA-256 of all judged PCRs.
func fieldBoots(t *testing.T) map[string]*sources.Boot {
	t.Helper()
	dir := attestortest.EventLogs(t)
	index, err := os.ReadFile(filepath.Join(dir, "pcrs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var facts map[string]struct{ Replayed map[string]map[string]string }
	if err := json.Unmarshal(index, &facts); err != nil {
		t.Fatal(err)
	}
	boots := map[string]*sources.Boot{}
	for name, f := range facts {
		quote := &attestor.Quote{Bank: "sha256", PCRs: map[int][]byte{}}
		for _, pcr := range judged {
			value, err := hex.DecodeString(f.Replayed["sha256"][strconv.Itoa(pcr)])
			if err == nil && len(value) == sha256.Size {
				quote.PCRs[pcr] = value
			}
		}
		log, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if b := boot.Of(quote, log, true); len(b.PCRs) == len(judged) && boot.NoReplay(b) == "" {
			boots[name] = b
		}
	}
	if len(boots) < 8 {
		t.Fatalf("only %d logs lead to all PCRs %v", len(boots), judged)
	}
	return boots
}

// conditions returns a profile of all that a machine proves.
func conditions(name string, b *sources.Boot) bootprofiles.Profile {
	p := bootprofiles.Profile{Name: name, Bank: b.Bank, PCRs: map[int][][]byte{}, SecureBoot: &bootprofiles.SecureBoot{}}
	for pcr, value := range b.PCRs {
		p.PCRs[pcr] = [][]byte{value}
	}
	if b.Log.SecureBoot != "" {
		enabled := b.Log.SecureBoot == "enabled"
		p.SecureBoot.Enabled = &enabled
	}
	for _, c := range []struct {
		from  sources.Measured
		to    *[][]byte
		exact bool
	}{
		{b.Log.DB, &p.SecureBoot.DB, true},
		{b.Log.DBX, &p.SecureBoot.DBX, false},
		{b.Log.Authorities, &p.SecureBoot.Authorities, true},
		{b.Log.Images, &p.Images, true},
	} {
		if len(c.from.Digests) > 0 && (c.from.Partial == "" || !c.exact) {
			*c.to = c.from.Digests
		}
	}
	if s := p.SecureBoot; s.Enabled == nil && s.DB == nil && s.DBX == nil && s.Authorities == nil {
		p.SecureBoot = nil
	}
	return p
}

// policy returns a source with some profiles.
func policy(t *testing.T, profiles ...bootprofiles.Profile) *bootpolicy.Source {
	t.Helper()
	d, err := bootprofiles.New(list.Header{}, nil, profiles)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "boot.json")
	if err := os.WriteFile(path, bootprofiles.Encode(d), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Minute) // nobody is writing it any more
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	s, err := bootpolicy.New(bootpolicy.Config{
		Path: path, Quote: &bootprofiles.Quote{Bank: "sha256", PCRs: judged, EventLog: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func ask(t *testing.T, s *bootpolicy.Source, b *sources.Boot) sources.Verdict {
	t.Helper()
	v, err := s.Check(t.Context(), &sources.Evidence{Proof: &sources.Proof{Boot: b}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A profile of everything that a real machine proves is met by that machine and by no other.
func TestPoliciesOfRealMachines(t *testing.T) {
	boots := fieldBoots(t)
	for name, b := range boots {
		s := policy(t, conditions(name, b))
		for other, o := range boots {
			v := ask(t, s, o)
			switch {
			case other == name && !v.Listed:
				t.Errorf("%s does not meet its own profile: %s", name, v.Reason)
			case other != name && v.Listed && !maps.EqualFunc(b.PCRs, o.PCRs, bytes.Equal):
				t.Errorf("%s meets the profile of %s", other, name)
			}
		}
	}
}

// For a real machine that has measured one event more than a profile knows, in any PCR, the
// reason names exactly that event.
func TestReasonsOfRealMachines(t *testing.T) {
	found := 0
	for name, b := range fieldBoots(t) {
		for _, pcr := range judged {
			var events []sources.BootEvent
			for _, e := range b.Log.Events {
				if e.PCR == pcr {
					events = append(events, e)
				}
			}
			if len(events) == 0 {
				continue
			}
			last := events[len(events)-1]
			before := beforeLast(b.PCRs[pcr], events)
			if before == nil {
				t.Errorf("%s: PCR %d begins nobody knows where", name, pcr)
				continue
			}
			found++
			s := policy(t, bootprofiles.Profile{
				Name: "known", Bank: "sha256", PCRs: map[int][][]byte{pcr: {before}},
			})
			want := fmt.Sprintf("without this event PCR %d would have a known value, so it is new; event %d (%s) %x",
				pcr, last.Number, last.What, last.Digest)
			if v := ask(t, s, b); v.Listed || !strings.HasSuffix(v.Reason, want) {
				t.Errorf("%s: %q, want %q", name, v.Reason, want)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d PCRs were looked at", found)
	}
}

// beforeLast returns the value of a PCR before the last of its events.
func beforeLast(value []byte, events []sources.BootEvent) []byte {
	for _, locality := range []byte{0, 3, 4} {
		now := make([]byte, sha256.Size)
		now[sha256.Size-1] = locality
		var before []byte
		for _, e := range events {
			sum := sha256.Sum256(slices.Concat(now, e.Digest))
			before, now = now, sum[:]
		}
		if bytes.Equal(now, value) {
			return before
		}
	}
	return nil
}
