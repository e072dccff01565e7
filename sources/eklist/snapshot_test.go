package eklist_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// mustParse parses a list that is right.
func mustParse(t testing.TB, list string) *eklist.Snapshot {
	t.Helper()
	s, err := eklist.Parse(strings.NewReader(list), eklist.Options{AllowEmpty: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shapes are sets of hashes that a table has to cope with: those that a list's
// writer has chosen to meet at one slot, at its beginning or at its end, and
// those beside them.
func shapes() map[string][]sources.EKHash {
	m := map[string][]sources.EKHash{
		"none":    nil,
		"one":     randomHashes(1, 1),
		"zero":    {{}},
		"last":    {sources.EKHash(bytes.Repeat([]byte{0xff}, 32))},
		"extreme": {{}, sources.EKHash(bytes.Repeat([]byte{0xff}, 32))},
	}
	for _, n := range []int{2, 3, 5, 17, 100, 1024, 1025, 3000, 100_000} {
		m[fmt.Sprintf("random %d", n)] = randomHashes(byte(n), n)
	}
	for name, prefix := range map[string]string{
		"low":    strings.Repeat("\x00", 8),
		"middle": strings.Repeat("\x80", 8),
		"high":   strings.Repeat("\xff", 8),
		"deep":   strings.Repeat("\x80", 29),
		"wide":   "\x80\x80",
	} {
		hashes := randomHashes(7, 3000)
		for i := range hashes {
			copy(hashes[i][:], prefix)
		}
		slices.SortFunc(hashes, func(a, b sources.EKHash) int { return bytes.Compare(a[:], b[:]) })
		m["clustered "+name] = slices.Compact(hashes)
		m["clustered "+name+" and random"] = append(slices.Clone(m["clustered "+name]), randomHashes(9, 3000)...)
	}
	// Of one mark, that of 0 and 1 alike, so that all of them have to be compared.
	for name, prefix := range map[string]string{"one mark": "", "one mark, clustered": "\x80\x80\x80"} {
		hashes := randomHashes(11, 3000)
		for i := range hashes {
			copy(hashes[i][:], prefix)
			hashes[i][31] &= 1
		}
		m[name] = hashes
	}
	return m
}

// neighbours returns hashes that differ little from one.
func neighbours(h sources.EKHash) []sources.EKHash {
	var all []sources.EKHash
	for _, i := range []int{0, 7, 8, 30, 31} {
		up, down := h, h
		up[i]++
		down[i]--
		all = append(all, up, down)
	}
	return append(all, sources.EKHash{}, sources.EKHash(bytes.Repeat([]byte{0xff}, 32)))
}

// TestLookup compares the table with a map, for hashes that it has and for those
// beside them: one that is lost refuses a machine, one that is found and not
// there admits a stranger.
func TestLookup(t *testing.T) {
	for name, hashes := range shapes() {
		t.Run(name, func(t *testing.T) {
			want := map[sources.EKHash]bool{}
			for _, h := range hashes {
				want[h] = true
			}
			shuffled := slices.Clone(hashes)
			rand.New(rand.NewPCG(1, 2)).Shuffle(len(hashes), func(i, j int) {
				shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
			})
			s := mustParse(t, string(textList(shuffled)))
			if s.Len() != len(want) {
				t.Fatalf("%d entries, not %d", s.Len(), len(want))
			}
			hashes = hashes[:min(len(hashes), 5000)]
			for _, h := range hashes {
				if _, ok := s.Lookup(h); !ok {
					t.Fatalf("does not list %v", h)
				}
				for _, other := range neighbours(h) {
					if _, ok := s.Lookup(other); ok != want[other] {
						t.Fatalf("lists %v: %v", other, ok)
					}
				}
			}
			sorted := slices.SortedFunc(maps.Keys(want), func(a, b sources.EKHash) int { return bytes.Compare(a[:], b[:]) })
			var all []sources.EKHash
			for h, record := range s.All() {
				all = append(all, h)
				if record != nil {
					t.Fatalf("%v has a record", h)
				}
			}
			if !slices.Equal(all, sorted) {
				t.Error("All is not the sorted list")
			}
		})
	}
}

// TestRecords: each hash has its own name and labels, wherever it is in the
// table, and those belong to who asks.
func TestRecords(t *testing.T) {
	for name, hashes := range shapes() {
		t.Run(name, func(t *testing.T) {
			hashes := hashes[:min(len(hashes), 6000)]
			var b strings.Builder
			want := map[string]sources.Attributes{}
			for i, h := range hashes {
				var a sources.Attributes
				switch i % 3 {
				case 1:
					a = named(fmt.Sprintf("n%d", i), "a", fmt.Sprintf("l%d", i%7))
					fmt.Fprintf(&b, "%v %s %s\n", h, a.Name, strings.Join(a.Labels, " "))
				case 2:
					a = named("", "only")
					fmt.Fprintf(&b, "%v - only\n", h)
				default:
					fmt.Fprintf(&b, "%v\n", h)
				}
				want[h.String()] = a
			}
			s := mustParse(t, b.String())
			if diff := gocmp.Diff(want, entries(s)); diff != "" {
				t.Fatalf("entries (-want +got):\n%s", diff)
			}
			for h, a := range want {
				v, err := s.Verdict(evidence(h))
				if err != nil || !v.Listed || gocmp.Diff(a, v.Attributes) != "" {
					t.Fatalf("%s: %+v, %v", h, v, err)
				}
				if len(v.Attributes.Labels) > 0 {
					v.Attributes.Labels[0] = "changed"
				}
			}
			if gocmp.Diff(want, entries(s)) != "" {
				t.Error("an answer that was changed changes the list")
			}
		})
	}
}

// evidence returns that of a TPM with this hash, in hex digits.
func evidence(hash string) *sources.Evidence {
	h, err := sources.ParseEKHash(hash)
	if err != nil {
		panic(err)
	}
	return &sources.Evidence{EKHash: h}
}

// TestVerdict: what a list says becomes the answer of a source, and what is no
// list cannot tell.
func TestVerdict(t *testing.T) {
	s := mustParse(t, `{"serial": 42, "keys": [{"hash": "`+hashA+`", "name": "n", "labels": ["l"]}]}`)
	for hash, want := range map[string]sources.Verdict{
		hashA: {Listed: true, Reason: "serial 42", Attributes: named("n", "l")},
		hashB: {Reason: "serial 42"},
	} {
		v, err := s.Verdict(evidence(hash))
		if diff := gocmp.Diff(want, v); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	for _, none := range []*eklist.Snapshot{nil, new(eklist.Snapshot)} {
		if v, err := none.Verdict(evidence(hashA)); err == nil || v.Listed {
			t.Errorf("no list: %+v", v)
		}
	}
	if _, ok := new(eklist.Snapshot).Lookup(sources.EKHash{}); ok {
		t.Error("the zero Snapshot lists the zero hash")
	}
}

// TestSuccession: whoever serves a list cannot bring back an older one, which has
// a machine that was revoked since.
func TestSuccession(t *testing.T) {
	list := func(serial, keys string) *eklist.Snapshot {
		return mustParse(t, `{`+serial+`"keys": [`+keys+`]}`)
	}
	a, ab := `"`+hashA+`"`, `"`+hashA+`", "`+hashB+`"`
	for _, test := range []struct {
		name         string
		before, next *eklist.Snapshot
		err          string
	}{
		{"first", nil, list("", a), ""},
		{"first with a serial", nil, list(`"serial": 7, `, a), ""},
		{"never a serial", list("", ab), list("", a), ""},
		{"a serial begins", list("", ab), list(`"serial": 0, `, a), ""},
		{"higher", list(`"serial": 7, `, ab), list(`"serial": 8, `, a), ""},
		{"the same", list(`"serial": 7, `, ab), list(`"serial": 7, "x": 1, `, `"`+hashB+`", {"hash": "`+hashA+`"}`), ""},
		{"lower", list(`"serial": 7, `, ab), list(`"serial": 6, `, ab), "serial 6 after serial 7: raise"},
		{"zero", list(`"serial": 7, `, ab), list(`"serial": 0, `, ab), "serial 0 after serial 7: raise"},
		{"none", list(`"serial": 0, `, ab), list("", ab), "a list without a serial after serial 0"},
		{"a text", list(`"serial": 7, `, ab), mustParse(t, hashA), "a list without a serial after serial 7"},
		{"other entries", list(`"serial": 7, `, ab), list(`"serial": 7, `, a), "different entries with the same serial 7"},
		{"other name", list(`"serial": 7, `, a), list(`"serial": 7, `, `{"hash": `+a+`, "name": "n"}`), "different entries with"},
		{"as many", list(`"serial": 7, `, a), list(`"serial": 7, `, `"`+hashB+`"`), "different entries with"},
	} {
		err := test.before.CheckSuccession(test.next)
		if (err == nil) != (test.err == "") || err != nil && !strings.HasPrefix(err.Error(), test.err) {
			t.Errorf("%s: %v, not %s", test.name, err, test.err)
		}
	}
}

// TestExpired: the moment that a list names is the first at which it is no longer
// good.
func TestExpired(t *testing.T) {
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	h := eklist.Header{Expires: at}
	if h.Expired(at.Add(-1)) || !h.Expired(at) || !h.Expired(at.Add(1)) || (eklist.Header{}).Expired(at) {
		t.Error("expires at another time")
	}
}

// TestChanges: differences that are written to a cache must lead to the new list,
// no more and no less.
func TestChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	hashes := randomHashes(5, 2000)
	for _, n := range []int{0, 1, 10, 1000, 2000} {
		lists := [2]strings.Builder{}
		for i, h := range hashes[:n] {
			for j := range lists {
				switch random.IntN(4) {
				case 0:
				case 1:
					fmt.Fprintf(&lists[j], "%v n%d\n", h, i)
				default:
					fmt.Fprintf(&lists[j], "%v\n", h)
				}
			}
		}
		a, b := mustParse(t, lists[0].String()), mustParse(t, lists[1].String())
		state := entries(a)
		before := ""
		for c := range a.Changes(b) {
			hash := c.Hash.String()
			_, there := state[hash]
			if hash <= before || there != (c.Kind != eklist.Added) {
				t.Fatalf("%v of %s, after %s, was there: %v", c.Kind, hash, before, there)
			}
			before = hash
			if c.Kind == eklist.Removed {
				delete(state, hash)
			} else {
				state[hash] = c.Record.Attributes()
			}
		}
		if diff := gocmp.Diff(entries(b), state); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		same := gocmp.Equal(entries(a), entries(b))
		if a.SameEntries(b) != same || !a.SameEntries(a) || (a.Digest() == b.Digest()) != same || same && n > 1 {
			t.Errorf("%d: the same entries: %v", n, same)
		}
		for range a.Changes(b) {
			break // must not go on
		}
		for range a.All() {
			break
		}
	}
}

// TestSameEntries: neither the order nor the form of a list makes another list,
// and a label that moves to a name does.
func TestSameEntries(t *testing.T) {
	text := mustParse(t, hashB+" - l m\n"+hashA+" n\n")
	json := mustParse(t, `{"serial": 1, "keys": [{"hash": "`+hashA+`", "name": "n"}, {"labels": ["l", "m"], "hash": "`+hashB+`"}]}`)
	if !text.SameEntries(json) || text.Digest() != json.Digest() {
		t.Error("other entries")
	}
	for _, other := range []string{"", hashA + " n\n", hashA + " n\n" + hashB + " l m", hashA + " n\n" + hashB + " - l", hashA + " n\n" + hashC + " - l m"} {
		if s := mustParse(t, other); s.SameEntries(text) || text.SameEntries(s) || s.Digest() == text.Digest() {
			t.Errorf("%q: the same entries", other)
		}
	}
}

// TestBuilder: a list comes out of a cache as it went in.
func TestBuilder(t *testing.T) {
	for name, hashes := range shapes() {
		var list strings.Builder
		for i, h := range hashes {
			fmt.Fprintf(&list, "%v %s l%d\n", h, cmp.Or(map[int]string{0: "-"}[i%2], fmt.Sprintf("n%d", i)), i%5)
		}
		s := mustParse(t, list.String())
		header := eklist.Header{Serial: 7, HasSerial: true, Name: "fleet"}
		for _, expected := range []int{len(hashes), 0, len(hashes) / 2, 2 * len(hashes), -1} {
			b := eklist.NewBuilder(header, expected)
			for hash, record := range s.All() {
				if err := b.Add(hash, record); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			got, err := b.Snapshot()
			if err != nil || !got.SameEntries(s) || got.Header() != header || got.Len() != len(hashes) {
				t.Fatalf("%s: another list, %v", name, err)
			}
		}
	}
}

// TestBuilderRefuses what a disk has made of a cache.
func TestBuilderRefuses(t *testing.T) {
	for name, test := range map[string]struct{ record, want string }{
		"cut":          {"\x03ab", "entry 1: a record that is cut off"},
		"cut label":    {"\x01a\x05", "entry 1: a record that is cut off"},
		"control":      {"\x01\x00", "entry 1: a name with a control character"},
		"empty label":  {"\x01a\x00", "entry 1: an empty label"},
		"not UTF-8":    {"\x01\xff", "entry 1: a name that is not UTF-8"},
		"65 labels":    {"\x00" + strings.Repeat("\x01a", 65), "entry 1: more than 64 labels"},
		"label no UTF": {"\x00\x01\xff", "entry 1: a label that is not UTF-8"},
	} {
		b := eklist.NewBuilder(eklist.Header{}, 2)
		if err := b.Add(sources.EKHash{1}, eklist.Record("\x01n")); err != nil {
			t.Fatal(err)
		}
		if err := b.Add(sources.EKHash{2}, eklist.Record(test.record)); err == nil || err.Error() != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, test := range []struct {
		hash   sources.EKHash
		record eklist.Record
		want   string
	}{
		{sources.EKHash{1}, nil, "entry 1: the hash 01"},
		{sources.EKHash{2}, eklist.Record("\x01n"), `entry 1: the name "n" for the second time, after entry 0`},
	} {
		b := eklist.NewBuilder(eklist.Header{}, 2)
		b.Add(sources.EKHash{1}, eklist.Record("\x01n"))
		b.Add(test.hash, test.record)
		if s, err := b.Snapshot(); s != nil || err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%v, not %s", err, test.want)
		}
	}
}

// TestManyNames: a name that is a duplicate is found among very many, and no
// other is taken for it.
func TestManyNames(t *testing.T) {
	hashes := randomHashes(1, 100_000)
	var list strings.Builder
	for i, h := range hashes[1:] {
		fmt.Fprintf(&list, "%v machine-%d\n", h, i)
	}
	mustParse(t, list.String())
	for _, i := range []int{0, 1023, 50_000, 99_998} {
		again := fmt.Sprintf("%v machine-%d\n", hashes[0], i)
		_, err := eklist.Parse(strings.NewReader(list.String()+again), eklist.Options{Size: int64(list.Len())})
		want := fmt.Sprintf(`line 100000: the name "machine-%d" for the second time, after line %d`, i, i+1)
		if err == nil || err.Error() != want {
			t.Errorf("%v, not %s", err, want)
		}
	}
}

// TestConcurrent has the race detector look at a Snapshot in use.
func TestConcurrent(t *testing.T) {
	hashes := randomHashes(1, 1000)
	s := mustParse(t, string(textList(hashes)))
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for _, h := range hashes {
				if _, ok := s.Lookup(h); !ok {
					t.Errorf("does not list %v", h)
				}
			}
			if !s.SameEntries(s) || s.Digest() == [32]byte{} {
				t.Error("not the same as itself")
			}
		})
	}
	wait.Wait()
}
