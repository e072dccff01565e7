package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A hostile attestation is the messages of an attacker.
type hostile struct {
	name    string
	payload []byte
	answer  func(challenge []byte) ([]byte, error)
}

// SPIRE does not restart a plugin that has died, so one payload that kills it would stop the
// attestations of a whole fleet. The plugin refuses thousands of malformed payloads with the right
// code. Afterwards an honest machine attests to the same process, whose memory has not grown
// beyond a limit.
func TestStormOfMalformedPayloads(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	honest := attestortest.New(t, attestortest.Options{})
	w.write(filepath.Join(hashes, honest.EKHash()), "")
	s := w.server(spiretest.ServerConfig{
		PluginData: fmt.Sprintf("source \"hash_dir\" \"fleet\" { path = %q }", hashes),
	})
	plugin := w.pluginPID(s)

	w.storm(s, honest)

	id, err := w.client(s).attest(w.ctx, honest.Payload(t), incumbentAnswer(honest))
	if err != nil {
		t.Fatalf("after the storm an honest machine is refused: %v", err)
	}
	if want := "spiffe://example.org/spire/agent/tpm/" + honest.EKHash(); id != want {
		t.Errorf("the agent is %s, want %s", id, want)
	}
	if n := len(w.agents(s)); n != 1 {
		t.Errorf("%d agents are listed, want the honest one alone", n)
	}
	if now := w.pluginPID(s); now != plugin {
		t.Errorf("the plugin was process %d and is process %d", plugin, now)
	}
	const limit = 256 << 20
	peak := w.peakMemory(plugin)
	t.Logf("the plugin had %d MiB at most", peak>>20)
	if peak > limit {
		t.Errorf("the plugin grew to more than %d MiB", limit>>20)
	}
}

// storm sends every hostile attestation several times, on many connections at once.
func (w *world) storm(s *spiretest.Server, victim *attestortest.TPM) {
	w.t.Helper()
	const attackers, rounds = 24, 2
	attacks := hostileAttestations(victim.Payload(w.t))
	var wg sync.WaitGroup
	for n := range attackers {
		c := w.client(s)
		order := rand.New(rand.NewPCG(1, uint64(n)))
		wg.Go(func() {
			for range rounds {
				for _, i := range order.Perm(len(attacks)) {
					_, err := c.attest(w.ctx, attacks[i].payload, attacks[i].answer)
					if problem := wantRefusal(err); problem != nil {
						w.t.Errorf("%s: %v", attacks[i].name, problem)
					}
				}
			}
		})
	}
	wg.Wait()
	w.t.Logf("%d hostile attestations", attackers*rounds*len(attacks))
}

// wantRefusal returns an error if a hostile attestation has not ended with the right code.
func wantRefusal(err error) error {
	if errors.Is(err, errLeft) {
		return nil
	}
	switch code := status.Code(err); code {
	case codes.InvalidArgument, codes.PermissionDenied:
		return nil
	case codes.OK:
		return errors.New("admitted")
	default:
		return fmt.Errorf("refused by code %v, want InvalidArgument or PermissionDenied: %w", code, err)
	}
}

// hostileAttestations returns attestations that are made from a valid payload, so that they pass
// the first checks.
func hostileAttestations(valid []byte) []hostile {
	garbage := func([]byte) ([]byte, error) { return []byte("garbage"), nil }
	attacks := []hostile{
		{"nothing", nil, garbage},
		{"null", []byte("null"), garbage},
		{"a number", []byte("42"), garbage},
		{"no object", []byte(`["EK"]`), garbage},
		{"an empty object", []byte("{}"), garbage},
		{"null fields", []byte(`{"EK":null,"AK":null}`), garbage},
		{"wrong types", []byte(`{"EK":{"EK":1},"AK":[2]}`), garbage},
		{"no UTF-8", []byte("{\"EK\":\"\xff\xfe\"}"), garbage},
		{"binary", make([]byte, 1000), garbage},
		{"two payloads", append(slices.Clip(valid), valid...), garbage},
		{"a field twice", bytes.Replace(valid, []byte("{"), []byte(`{"EK":"AA==",`), 1), garbage},
		{"deep arrays", bytes.Repeat([]byte("["), 60000), garbage},
		{"deep objects", bytes.Repeat([]byte(`{"A":`), 12000), garbage},
		{"3 MiB", bytes.Repeat([]byte("A"), 3<<20), garbage},
		{"a long EK", fmt.Appendf(nil, `{"EK":%q}`, strings.Repeat("A", 60000)), garbage},
		{"a wrong secret", valid, func([]byte) ([]byte, error) {
			return []byte(`{"Secret":"AAAA"}`), nil
		}},
		{"a response without a secret", valid, func([]byte) ([]byte, error) {
			return []byte(`{}`), nil
		}},
		{"an empty response", valid, func([]byte) ([]byte, error) { return nil, nil }},
		{"a response of 3 MiB", valid, func([]byte) ([]byte, error) {
			return bytes.Repeat([]byte("["), 3<<20), nil
		}},
		{"the challenge as the response", valid, func(c []byte) ([]byte, error) { return c, nil }},
		{"leaving in the middle", valid, func([]byte) ([]byte, error) { return nil, errLeft }},
	}
	random := rand.New(rand.NewPCG(7, 7))
	for i := range 24 {
		cut := valid[:random.IntN(len(valid))]
		attacks = append(attacks, hostile{fmt.Sprintf("cut at %d", len(cut)), cut, garbage})
		flipped := bytes.Clone(valid)
		for range 1 + i%4 {
			flipped[random.IntN(len(flipped))] ^= 1 << random.IntN(8)
		}
		attacks = append(attacks, hostile{fmt.Sprintf("flipped bits %d", i), flipped, garbage})
	}
	return attacks
}

// pluginPID returns the process ID of the server's plugin.
func (w *world) pluginPID(s *spiretest.Server) int {
	w.t.Helper()
	pids, err := spiretest.Children(s.PID())
	if err != nil {
		w.t.Fatal(err)
	}
	if len(pids) != 1 {
		w.t.Fatalf("the server has %d child processes, want its one plugin", len(pids))
	}
	return pids[0]
}

// peakMemory returns the peak of a process's memory, in bytes.
func (w *world) peakMemory(pid int) int64 {
	w.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				w.t.Fatal(err)
			}
			return kib << 10
		}
	}
	w.t.Fatalf("no VmHWM in the status of process %d", pid)
	return 0
}
