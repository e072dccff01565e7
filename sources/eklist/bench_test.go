package eklist_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// million is how many entries the lists of the benchmarks have. EKLIST_BENCH_10M=1
// has them run on ten million as well, which takes 3 GB and some minutes.
const million = 1_000_000

func sizes() []int {
	if os.Getenv("EKLIST_BENCH_10M") != "" {
		return []int{million, 10 * million}
	}
	return []int{million}
}

func sizeName(n int) string { return fmt.Sprintf("entries=%dM", n/million) }

// randomHashes returns hashes that are the same in each run.
func randomHashes(seed byte, n int) []eklist.Hash {
	random := rand.NewChaCha8([32]byte{seed})
	hashes := make([]eklist.Hash, n)
	for i := range hashes {
		random.Read(hashes[i][:])
	}
	return hashes
}

// textList writes the text form.
func textList(hashes []eklist.Hash) []byte {
	b := make([]byte, 0, 65*len(hashes))
	for _, h := range hashes {
		b = hex.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	return b
}

// jsonList writes the JSON form.
func jsonList(hashes []eklist.Hash, entry func(b []byte, i int, hash eklist.Hash) []byte) []byte {
	b := []byte(`{"version": 1, "serial": 42, "keys": [`)
	for i, h := range hashes {
		if i > 0 {
			b = append(b, ",\n"...)
		}
		b = entry(b, i, h)
	}
	return append(b, "]}\n"...)
}

func plainEntry(b []byte, _ int, hash eklist.Hash) []byte {
	return append(hex.AppendEncode(append(b, '"'), hash[:]), '"')
}

func namedEntry(b []byte, i int, hash eklist.Hash) []byte {
	b = hex.AppendEncode(append(b, `{"hash": "`...), hash[:])
	return fmt.Appendf(b, `", "name": "us-east-%d", "labels": ["rack:%d", "env:prod"]}`, i, i/40)
}

func build(tb testing.TB, list []byte) *eklist.Snapshot {
	tb.Helper()
	s, err := eklist.Parse(bytes.NewReader(list), eklist.Options{MaxBytes: 2 << 30, Size: int64(len(list))})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// Attestations look up one hash at a time, which is what "alone" measures: the
// clock is read before and after each, for which the processor waits until all
// that came before is done. What reading it takes is not counted. "many" lets
// the processor begin with the next ones before.
var paces = []string{"alone", "many"}

// pace runs f at a pace and reports its time.
func pace(b *testing.B, pace string, f func(i int) bool) (found int) {
	b.Helper()
	b.ReportAllocs()
	i := 0
	if pace == "many" {
		for b.Loop() {
			if f(i) {
				found++
			}
			i++
		}
		return found
	}
	var took, reading time.Duration
	for b.Loop() {
		begun := time.Now()
		ok := f(i)
		ended := time.Now()
		reading += time.Since(ended)
		took += ended.Sub(begun)
		if ok {
			found++
		}
		i++
	}
	b.ReportMetric(float64(took-reading)/float64(i), "ns/op")
	return found
}

// BenchmarkLookup is to be compared with BenchmarkCompare.
func BenchmarkLookup(b *testing.B) {
	for _, n := range sizes() {
		hashes := randomHashes(1, n)
		s := build(b, textList(hashes))
		asked := map[string][]eklist.Hash{"hit": nil, "miss": randomHashes(2, 1<<20)}
		for _, at := range places(n) {
			asked["hit"] = append(asked["hit"], hashes[at])
		}
		for _, kind := range []string{"hit", "miss"} {
			for _, p := range paces {
				b.Run(sizeName(n)+"/"+kind+"/"+p, func(b *testing.B) {
					asked := asked[kind]
					found := pace(b, p, func(i int) bool {
						_, ok := s.Lookup(asked[i&(1<<20-1)])
						return ok
					})
					if (found == 0) != (kind == "miss") {
						b.Fatal(found)
					}
				})
			}
		}
	}
}

// places returns 2^20 random places in a list.
func places(n int) []uint32 {
	random := rand.New(rand.NewPCG(1, 2))
	at := make([]uint32, 1<<20)
	for i := range at {
		at[i] = uint32(random.IntN(n))
	}
	return at
}

// BenchmarkCompare compares a hash with a random element of an array.
func BenchmarkCompare(b *testing.B) {
	for _, n := range sizes() {
		hashes, at := randomHashes(1, n), places(n)
		asked := randomHashes(2, 1<<20)
		for _, kind := range []string{"hit", "miss"} {
			for i := range asked {
				if kind == "hit" {
					asked[i] = hashes[at[i]]
				} else {
					asked[i][31]++
				}
			}
			for _, p := range paces {
				b.Run(sizeName(n)+"/"+kind+"/"+p, func(b *testing.B) {
					found := pace(b, p, func(i int) bool {
						return hashes[at[i&(1<<20-1)]] == asked[i&(1<<20-1)]
					})
					if (found == 0) != (kind == "miss") {
						b.Fatal(found)
					}
				})
			}
		}
	}
}

// BenchmarkText is to be compared with BenchmarkTextFloor.
func BenchmarkText(b *testing.B) {
	for _, n := range sizes() {
		list := textList(randomHashes(1, n))
		b.Run(sizeName(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				runtime.KeepAlive(build(b, list))
			}
		})
	}
}

// BenchmarkTextFloor reads the lines and decodes them into a slice that has room
// for them.
func BenchmarkTextFloor(b *testing.B) {
	for _, n := range sizes() {
		list := textList(randomHashes(1, n))
		b.Run(sizeName(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				hashes := make([]eklist.Hash, 0, n)
				lines := bufio.NewReaderSize(bytes.NewReader(list), 256<<10)
				for len(hashes) < n {
					line, err := lines.ReadSlice('\n')
					if err != nil {
						b.Fatal(err)
					}
					hashes = hashes[:len(hashes)+1]
					if _, err := hex.Decode(hashes[len(hashes)-1][:], line[:64]); err != nil {
						b.Fatal(err)
					}
				}
				runtime.KeepAlive(hashes)
			}
		})
	}
}

var jsonForms = []struct {
	name  string
	entry func(b []byte, i int, hash eklist.Hash) []byte
}{{"plain", plainEntry}, {"named", namedEntry}}

// BenchmarkJSON is to be compared with BenchmarkJSONMap.
func BenchmarkJSON(b *testing.B) {
	hashes := randomHashes(1, million)
	for _, form := range jsonForms {
		list := jsonList(hashes, form.entry)
		b.Run(form.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				runtime.KeepAlive(build(b, list))
			}
		})
	}
}

// BenchmarkJSONMap decodes the list by encoding/json and puts it in a map.
func BenchmarkJSONMap(b *testing.B) {
	hashes := randomHashes(1, million)
	b.Run("plain", func(b *testing.B) {
		list := jsonList(hashes, plainEntry)
		for b.Loop() {
			var decoded struct {
				Keys []string `json:"keys"`
			}
			if err := json.Unmarshal(list, &decoded); err != nil {
				b.Fatal(err)
			}
			m := map[eklist.Hash]struct{}{}
			for _, k := range decoded.Keys {
				var h eklist.Hash
				hex.Decode(h[:], []byte(k))
				m[h] = struct{}{}
			}
			runtime.KeepAlive(m)
		}
	})
	b.Run("named", func(b *testing.B) {
		list := jsonList(hashes, namedEntry)
		type entry struct {
			Hash   string   `json:"hash"`
			Name   string   `json:"name"`
			Labels []string `json:"labels"`
		}
		for b.Loop() {
			var decoded struct {
				Keys []entry `json:"keys"`
			}
			if err := json.Unmarshal(list, &decoded); err != nil {
				b.Fatal(err)
			}
			m := map[eklist.Hash]entry{}
			for _, k := range decoded.Keys {
				var h eklist.Hash
				hex.Decode(h[:], []byte(k.Hash))
				m[h] = k
			}
			runtime.KeepAlive(m)
		}
	})
}

// BenchmarkClustered parses and looks up hashes that their writer has chosen so
// that all point at one slot.
func BenchmarkClustered(b *testing.B) {
	hashes := randomHashes(1, million)
	for i := range hashes {
		copy(hashes[i][:8], "\x80\x80\x80\x80\x80\x80\x80\x80")
	}
	list := textList(hashes)
	s := build(b, list)
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			runtime.KeepAlive(build(b, list))
		}
	})
	asked := randomHashes(2, 1<<20)
	for i, at := range places(million) {
		asked[i] = hashes[at]
	}
	b.Run("lookup", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if _, ok := s.Lookup(asked[i]); !ok {
				b.Fatal("not found")
			}
			i = (i + 1) & (1<<20 - 1)
		}
	})
}

// BenchmarkWalk is what a cache and the check of a serial ask of a list.
func BenchmarkWalk(b *testing.B) {
	hashes := randomHashes(1, million)
	s := build(b, textList(hashes))
	slices.Reverse(hashes)
	t := build(b, textList(hashes))
	b.Run("same", func(b *testing.B) {
		for b.Loop() {
			if !s.SameEntries(t) {
				b.Fatal("not the same")
			}
		}
	})
	b.Run("digest", func(b *testing.B) {
		for b.Loop() {
			s.Digest()
		}
	})
}
