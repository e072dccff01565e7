package eklist_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// reloadList is the variable that makes a process of the test binary do nothing
// but load the list that it names, three times.
const reloadList = "EKLIST_TEST_RELOAD"

func TestMain(m *testing.M) {
	path := os.Getenv(reloadList)
	if path == "" {
		os.Exit(m.Run())
	}
	if err := reload(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// reload loads a list thrice, while the one before is still being served, and
// prints the peak of the memory that the process had, each time.
func reload(path string) error {
	var serving *eklist.Snapshot
	for range 3 {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		opts := eklist.Options{MaxBytes: 2 << 30}
		if info, err := file.Stat(); err == nil && os.Getenv(reloadList+"_UNSIZED") == "" {
			opts.Size = info.Size()
		}
		next, err := eklist.Parse(file, opts)
		file.Close()
		if err != nil {
			return err
		}
		runtime.KeepAlive(serving)
		serving = next
		peak, err := peakMemory()
		if err != nil {
			return err
		}
		fmt.Println(serving.Len(), peak)
	}
	return nil
}

// peakMemory returns the peak of the resident memory of this process.
func peakMemory() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			return n << 10, err
		}
	}
	return 0, errors.New("no VmHWM in /proc/self/status")
}

// TestPeakMemory: a reload takes no more memory than a server was given, the
// list that is being served meanwhile included.
func TestPeakMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector has memory of its own: the bars hold without it")
	}
	n := sizes()[len(sizes())-1]
	for name, list := range map[string][]byte{
		"text": textList(randomHashes(1, n)),
		"JSON": jsonList(randomHashes(1, n), plainEntry),
	} {
		path := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(path, list, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			unsized string
			bars    [3]float64 // the first load, and each reload
		}{{"", [3]float64{2.5, 3.5, 3.5}}, {"1", [3]float64{2.5, 3.5, 3.5}}} {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), reloadList+"="+path, reloadList+"_UNSIZED="+test.unsized)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(bytes.NewReader(out))
			for i := 0; lines.Scan(); i++ {
				var entries, peak int
				if _, err := fmt.Sscan(lines.Text(), &entries, &peak); err != nil || entries != n {
					t.Fatalf("%q: %v", lines.Text(), err)
				}
				times := float64(peak) / float64(32*n)
				t.Logf("%s, size unknown %q, load %d: %.2f times the hashes", name, test.unsized, i+1, times)
				if times > test.bars[i] {
					t.Errorf("%s, load %d: %.2f times the hashes, more than %.1f", name, i+1, times, test.bars[i])
				}
			}
		}
	}
}

// TestLiveMemory: a list takes at most 1.4 times its hashes as long as it serves,
// and the collector of garbage has nothing to look at in it.
func TestLiveMemory(t *testing.T) {
	const n = 1 << 18
	for name, list := range map[string][]byte{
		"text":      textList(randomHashes(1, n)),
		"JSON":      jsonList(randomHashes(1, n), plainEntry),
		"commented": bytes.ReplaceAll(textList(randomHashes(1, n)), []byte("0\n"), []byte("0\n# a comment between\n")),
	} {
		for _, size := range []int{0, len(list), len(list) / 2, 2 * len(list)} {
			before := liveMemory()
			s, err := eklist.Parse(bytes.NewReader(list), eklist.Options{Size: int64(size)})
			if err != nil {
				t.Fatal(err)
			}
			each := float64(liveMemory()-before) / n
			if each > 1.4*32 {
				t.Errorf("%s, size %d of %d: %.1f bytes an entry", name, size, len(list), each)
			}
			runtime.KeepAlive(s)
		}
		runtime.KeepAlive(list)
	}
}

func liveMemory() int {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestAllocations: no entry without a name costs an allocation, and no look-up
// does. A server would collect garbage for every list and every attestation.
func TestAllocations(t *testing.T) {
	hashes := randomHashes(1, 200_000)
	for name, list := range map[string][]byte{"text": textList(hashes), "JSON": jsonList(hashes, plainEntry)} {
		for _, size := range []int{0, len(list)} {
			allocs := testing.AllocsPerRun(1, func() {
				if _, err := eklist.Parse(bytes.NewReader(list), eklist.Options{Size: int64(size)}); err != nil {
					t.Error(err)
				}
			})
			if t.Logf("%s, size %d: %.0f allocations", name, size, allocs); allocs > 200 {
				t.Errorf("%s: %.0f allocations", name, allocs)
			}
		}
	}
	s := build(t, jsonList(hashes[:1000], namedEntry))
	misses := randomHashes(2, 1000)
	allocs := testing.AllocsPerRun(10, func() {
		for i := range misses {
			_, hit := s.Lookup(hashes[i])
			_, miss := s.Lookup(misses[i])
			if !hit || miss {
				t.Error("wrong")
			}
		}
		s.SameEntries(s)
		for range s.All() {
			continue
		}
	})
	if allocs > 0 {
		t.Errorf("%.1f allocations for looking up and walking", allocs)
	}
}
