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

	"github.com/spire-tpm/spire-tpm-attestor/sources"
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
func randomHashes(seed byte, n int) []sources.EKHash {
	random := rand.NewChaCha8([32]byte{seed})
	hashes := make([]sources.EKHash, n)
	for i := range hashes {
		random.Read(hashes[i][:])
	}
	return hashes
}

// textList writes the text form.
func textList(hashes []sources.EKHash) []byte {
	b := make([]byte, 0, 65*len(hashes))
	for _, h := range hashes {
		b = hex.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	return b
}

// jsonList writes the JSON form.
func jsonList(hashes []sources.EKHash, entry func(b []byte, i int, hash sources.EKHash) []byte) []byte {
	b := []byte(`{"version": 1, "serial": 42, "keys": [`)
	for i, h := range hashes {
		if i > 0 {
			b = append(b, ",\n"...)
		}
		b = entry(b, i, h)
	}
	return append(b, "]}\n"...)
}

func plainEntry(b []byte, _ int, hash sources.EKHash) []byte {
	return append(hex.AppendEncode(append(b, '"'), hash[:]), '"')
}

func namedEntry(b []byte, i int, hash sources.EKHash) []byte {
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

// A pace is how quickly questions come. Attestations look up one hash at a time,
// which is what "alone" measures: the clock is read before and after each, for which
// the processor waits until all that came before is done; what reading it takes is
// not counted. "many" lets the processor begin with the next ones before.
//
// ask asks the questions number 0 to n and returns how many were answered with yes.
// It holds no call that could be left out, or would be made, for one pace alone.
type pace struct {
	name string
	n    int // questions to a measurement
	took func(ask func(from, to int) int, from, to int) (time.Duration, int)
}

var paces = []pace{
	{"alone", 1 << 8, func(ask func(from, to int) int, from, to int) (time.Duration, int) {
		var took time.Duration
		found := 0
		for i := from; i < to; i++ {
			begun := time.Now()
			found += ask(i, i+1)
			ended := time.Now()
			took += ended.Sub(begun) - time.Since(ended)
		}
		return took, found
	}},
	{"many", 1 << 12, func(ask func(from, to int) int, from, to int) (time.Duration, int) {
		begun := time.Now()
		found := ask(from, to)
		return time.Since(begun), found
	}},
}

// byTurns asks two sides the same questions by turns, so that what else the machine
// does meets both, and reports the medians and the ratio of the second to the first.
// All answers have to be yes, or none.
func byTurns(b *testing.B, p pace, names [2]string, sides [2]func(from, to int) int, yes [2]bool) {
	b.Helper()
	b.ReportAllocs()
	var took [2][]time.Duration
	for from := 0; b.Loop(); from = (from + p.n) & (questions - 1) {
		for side, ask := range sides {
			t, found := p.took(ask, from, from+p.n)
			if (found == p.n) != yes[side] || (found == 0) == yes[side] {
				b.Fatalf("%d of %d found", found, p.n)
			}
			took[side] = append(took[side], t)
		}
	}
	var medians [2]float64
	for side, all := range took {
		slices.Sort(all)
		medians[side] = float64(all[len(all)/2].Nanoseconds()) / float64(p.n)
		b.ReportMetric(medians[side], names[side])
	}
	b.ReportMetric(medians[1]/medians[0], "ratio")
}

// questions is how many different ones there are: a power of two, and so many that
// what they ask for is in no cache when its turn comes again.
const questions = 1 << 20

// lookUp returns what looks up hashes, one after another.
func lookUp(s *eklist.Snapshot, asked []sources.EKHash) func(from, to int) int {
	return func(from, to int) (found int) {
		for i := from; i < to; i++ {
			if _, ok := s.Lookup(asked[i]); ok {
				found++
			}
		}
		return found
	}
}

// compareOne returns what compares each hash with one element of an array.
func compareOne(hashes []sources.EKHash, at []uint32, asked []sources.EKHash) func(from, to int) int {
	return func(from, to int) (found int) {
		for i := from; i < to; i++ {
			if hashes[at[i]] == asked[i] {
				found++
			}
		}
		return found
	}
}

// BenchmarkLookupOverCompare holds a look-up against comparing the hash with a random
// element of an array of the same length, all 32 bytes of both: the hashes that are
// compared and not found differ in the last one.
func BenchmarkLookupOverCompare(b *testing.B) {
	for _, n := range sizes() {
		hashes, at := randomHashes(1, n), places(n)
		s := build(b, textList(hashes))
		hits, misses, alike := pick(hashes, at), randomHashes(2, questions), pick(hashes, at)
		for i := range alike {
			alike[i][31]++
		}
		for _, kind := range []struct {
			name            string
			compared, asked []sources.EKHash
			yes             bool
		}{{"hit", hits, hits, true}, {"miss", alike, misses, false}} {
			for _, p := range paces {
				b.Run(sizeName(n)+"/"+kind.name+"/"+p.name, func(b *testing.B) {
					byTurns(b, p, [2]string{"compare-ns", "lookup-ns"}, [2]func(from, to int) int{
						compareOne(hashes, at, kind.compared), lookUp(s, kind.asked),
					}, [2]bool{kind.yes, kind.yes})
				})
			}
		}
		for _, p := range paces {
			b.Run(sizeName(n)+"/miss-over-hit/"+p.name, func(b *testing.B) {
				byTurns(b, p, [2]string{"hit-ns", "miss-ns"}, [2]func(from, to int) int{
					lookUp(s, hits), lookUp(s, misses),
				}, [2]bool{true, false})
			})
		}
	}
}

// pick returns the hashes at these places.
func pick(hashes []sources.EKHash, at []uint32) []sources.EKHash {
	picked := make([]sources.EKHash, len(at))
	for i, a := range at {
		picked[i] = hashes[a]
	}
	return picked
}

// places returns random places in a list, one for each question.
func places(n int) []uint32 {
	random := rand.New(rand.NewPCG(1, 2))
	at := make([]uint32, questions)
	for i := range at {
		at[i] = uint32(random.IntN(n))
	}
	return at
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
				hashes := make([]sources.EKHash, 0, n)
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
	entry func(b []byte, i int, hash sources.EKHash) []byte
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
			m := map[sources.EKHash]struct{}{}
			for _, k := range decoded.Keys {
				var h sources.EKHash
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
			m := map[sources.EKHash]entry{}
			for _, k := range decoded.Keys {
				var h sources.EKHash
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
	asked := pick(hashes, places(million))
	b.Run("lookup", func(b *testing.B) {
		i := 0
		for b.Loop() {
			if _, ok := s.Lookup(asked[i]); !ok {
				b.Fatal("not found")
			}
			i = (i + 1) & (questions - 1)
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
