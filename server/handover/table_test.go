package handover_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

const machine = "spiffe://example.org/spire/agent/tpm/0"

// hash returns the hash of a key that has a name.
func hash(name string) [sha256.Size]byte { return sha256.Sum256([]byte(name)) }

func mustPut(tb testing.TB, table *handover.Table, id string, k handover.Key) {
	tb.Helper()
	if !table.Put(id, k) {
		tb.Fatal("there is no room")
	}
}

func wantTake(tb testing.TB, table *handover.Table, id, key string, want error) {
	tb.Helper()
	if err := table.Take(id, hash(key)); !errors.Is(err, want) || want == nil && err != nil {
		tb.Errorf("take the key %s for %s: %v, want %v", key, id, err, want)
	}
}

// heap returns how many bytes the program uses.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A key serves once, for its ID alone, and no other key serves: otherwise one certified key would
// get SVIDs for others, or for another machine.
func TestKeyServesOnce(t *testing.T) {
	var table handover.Table
	wantTake(t, &table, machine, "a", handover.ErrNothing)
	mustPut(t, &table, machine, handover.Only(hash("a")))
	wantTake(t, &table, "spiffe://example.org/spire/agent/tpm/1", "a", handover.ErrNothing)
	wantTake(t, &table, "spiffe://example.com/spire/agent/tpm/0", "a", handover.ErrNothing)
	wantTake(t, &table, machine, "b", handover.ErrOtherKey)
	wantTake(t, &table, machine, "a", nil)
	wantTake(t, &table, machine, "a", handover.ErrNothing)

	mustPut(t, &table, machine, handover.Any())
	wantTake(t, &table, machine, "b", nil)
	wantTake(t, &table, machine, "b", handover.ErrNothing)

	mustPut(t, &table, machine, handover.Key{})
	if err := table.Take(machine, [sha256.Size]byte{}); !errors.Is(err, handover.ErrOtherKey) {
		t.Errorf("the zero Key: %v", err)
	}
}

// An agent whose attestation is repeated attests with a new key: the newer key serves, even after SPIRE has
// asked about the older key. If the older attestation allowed any key, nothing of that is left.
func TestNewerKeyReplaces(t *testing.T) {
	var table handover.Table
	mustPut(t, &table, machine, handover.Any())
	mustPut(t, &table, machine, handover.Only(hash("a")))
	mustPut(t, &table, machine, handover.Only(hash("b")))
	wantTake(t, &table, machine, "a", handover.ErrOtherKey)
	wantTake(t, &table, machine, "b", nil)
	wantTake(t, &table, machine, "a", handover.ErrNothing)
}

// A key that was handed over long ago does not serve: whoever stops SPIRE between the attestation
// and the signature cannot save up an SVID for later.
func TestKeyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table handover.Table
		mustPut(t, &table, machine, handover.Only(hash("a")))
		time.Sleep(handover.Lifetime - time.Nanosecond)
		wantTake(t, &table, machine, "b", handover.ErrOtherKey)
		time.Sleep(time.Nanosecond)
		wantTake(t, &table, machine, "a", handover.ErrNothing)
		mustPut(t, &table, machine, handover.Any())
		time.Sleep(handover.Lifetime)
		wantTake(t, &table, machine, "a", handover.ErrNothing)
	})
}

// However many keys nobody takes, the table is bounded. If it is full, it refuses a new machine's key, removes
// no key that waits, and still replaces a key by the next key of the same machine. After a minute there is room
// again. A full table needs less than 20 MB.
func TestTableIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table handover.Table
		before, full := heap(), 0
		for ; table.Put(fmt.Sprintf("%s%d", machine, full), handover.Only(hash("a"))); full++ {
			if full > 1<<20 {
				t.Fatal("the table has no bound")
			}
		}
		if full != 1<<16 {
			t.Errorf("%d keys", full)
		}
		if grown := heap() - before; grown > 20<<20 {
			t.Errorf("%d bytes", grown)
		}
		mustPut(t, &table, machine+"0", handover.Only(hash("b")))
		wantTake(t, &table, machine+"0", "b", nil)
		mustPut(t, &table, machine, handover.Any())
		wantTake(t, &table, machine+"1", "a", nil)
		if time.Sleep(handover.Lifetime); !table.Put("x", handover.Any()) {
			t.Error("no room after a minute")
		}
	})
}

// Two attestations of one machine at the same time, as a hostile agent can make them, get at most one SVID
// for each key that was handed over.
func TestRaces(t *testing.T) {
	var table handover.Table
	var put, took sync.Map
	var all sync.WaitGroup
	for worker := range 2 * runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := range 2000 {
				key := fmt.Sprintf("%d.%d", worker, i)
				put.Store(hash(key), true)
				table.Put(machine, handover.Only(hash(key)))
				if rand.IntN(2) == 0 {
					runtime.Gosched()
				}
				for range 2 {
					if table.Take(machine, hash(key)) != nil {
						continue
					}
					if _, again := took.LoadOrStore(hash(key), true); again {
						t.Error("a key served twice")
					}
				}
			}
		})
	}
	all.Wait()
}

// The composer decides about exactly the IDs of this plugin's agents. If it missed one, that
// agent would get an SVID for any key; if it took in others, it would stop other attestors.
func TestGuards(t *testing.T) {
	for path, want := range map[string]bool{
		"/spire/agent/tpm/0":         true,
		"/spire/agent/tpm/a/b/c":     true,
		"/spire/agent/tpm":           true,
		"/spire/agent/tpm2/0":        false,
		"/spire/agent/tpm_devid/0":   false,
		"/spire/agent/TPM/0":         false,
		"/spire/agent/join_token/t":  false,
		"/spire/agent":               false,
		"/spire/server":              false,
		"/x/spire/agent/tpm/0":       false,
		"/spire/agent/x/tpm/0":       false,
		"/spire/agent/tpm.0":         false,
		"/spire/agents/tpm/0":        false,
		"/ns/tpm/sa/spire-agent-tpm": false,
	} {
		if got := handover.Guards(spiffeid.RequireFromString("spiffe://example.org" + path)); got != want {
			t.Errorf("%s: %t", path, got)
		}
	}
	for _, other := range []string{"/spire/agent//tpm/0", "/spire/agent/./tpm/0", "/spire/agent/tpm/", "/spire/agent/%74pm/0"} {
		if id, err := spiffeid.FromString("spiffe://example.org" + other); err == nil {
			t.Errorf("%s is an ID", id)
		}
	}
}

// A path that the kernel would cut, or that could mean different files for the two plugins, is refused, and
// the error says what to do.
func TestCheckPath(t *testing.T) {
	for path, want := range map[string]string{
		"/run/spire/tpm/svid.sock":       "",
		"/" + strings.Repeat("a/", 53):   "written plainly",
		"/t/" + strings.Repeat("a", 104): "",
		"/t/" + strings.Repeat("a", 105): "at most 107",
		"run/svid.sock":                  "absolute",
		"@svid":                          "absolute",
		"":                               "absolute",
		"/run/../svid.sock":              `write "/svid.sock"`,
		"/run//svid.sock":                `write "/run/svid.sock"`,
		"/svid.sock":                     "is in /",
		"/":                              "is in /",
	} {
		err := handover.CheckPath(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
}
