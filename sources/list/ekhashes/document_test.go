package ekhashes_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

func hashOf(tb testing.TB, text string) sources.EKHash {
	tb.Helper()
	h, err := sources.ParseEKHash(text)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

// mustParse parses a list that is right.
func mustParse(tb testing.TB, text string) *ekhashes.Document {
	tb.Helper()
	d, err := ekhashes.Parse([]byte(text), ekhashes.Options{AllowEmpty: true})
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func jsonOf(tb testing.TB, d *ekhashes.Document) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := d.WriteJSON(&b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func textOf(d *ekhashes.Document) ([]byte, error) {
	var b bytes.Buffer
	err := d.WriteText(&b)
	return b.Bytes(), err
}

// neighbours returns hashes that differ little from one.
func neighbours(h sources.EKHash) []sources.EKHash {
	all := []sources.EKHash{{}}
	for i := range h {
		up, down := h, h
		up[i]++
		down[i]--
		all = append(all, up, down)
	}
	return all
}

// A look-up is compared with a map, for hashes that the list has and for those beside
// them, and so is what the list says of each: a hash that is lost refuses a machine, one
// that is found and not there admits a stranger.
func TestLookup(t *testing.T) {
	alike := randomHashes(7, 3000)
	for i := range alike {
		copy(alike[i][:], strings.Repeat("\x80", 29))
	}
	slices.SortFunc(alike, func(a, b sources.EKHash) int { return strings.Compare(string(a[:]), string(b[:])) })
	for name, hashes := range map[string][]sources.EKHash{
		"none": nil, "one": randomHashes(1, 1), "zero": {{}}, "many": randomHashes(2, 3000),
		"alike": slices.Compact(alike), "last": {sources.EKHash(bytes.Repeat([]byte{0xff}, 32))},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[sources.EKHash]sources.Attributes{}
			var text strings.Builder
			for i, h := range hashes {
				a := sources.Attributes{}
				switch i % 3 {
				case 1:
					a = named(fmt.Sprintf("n%d", i), "a", fmt.Sprintf("l%d", i%7))
					fmt.Fprintf(&text, "%v %s %s\n", h, a.Name, strings.Join(a.Labels, " "))
				case 2:
					a = named("", "only")
					fmt.Fprintf(&text, "%v - only\n", h)
				default:
					fmt.Fprintf(&text, "%v\n", h)
				}
				want[h] = a
			}
			d := mustParse(t, text.String())
			if d.Len() != len(want) || len(entries(d)) != len(want) {
				t.Fatalf("%d entries, not %d", d.Len(), len(want))
			}
			for h, a := range want {
				v := d.Verdict(h)
				if !v.Listed || cmp.Diff(a, v.Attributes) != "" {
					t.Fatalf("%v: %+v", h, v)
				}
				if len(v.Attributes.Labels) > 0 {
					v.Attributes.Labels[0] = "changed" // which belongs to who has asked
				}
				if again := d.Verdict(h); cmp.Diff(a, again.Attributes) != "" {
					t.Fatal("an answer that was changed changes the list")
				}
				for _, other := range neighbours(h) {
					if _, there := want[other]; d.Verdict(other).Listed != there {
						t.Fatalf("lists %v: %v", other, !there)
					}
				}
			}
			checkWritten(t, d)
		})
	}
}

// What a list says becomes the answer of a source.
func TestVerdict(t *testing.T) {
	d := mustParse(t, `{"serial": 42, "keys": [{"hash": "`+hashA+`", "name": "n", "labels": ["l"]}]}`)
	for hash, want := range map[string]sources.Verdict{
		hashA: {Listed: true, Reason: "serial 42, keys[0]", Attributes: named("n", "l")},
		hashB: {Reason: "serial 42"},
	} {
		if diff := cmp.Diff(want, d.Verdict(hashOf(t, hash))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if v := mustParse(t, "# machines\n\n"+hashB+"\n"+hashA+"\n").Verdict(hashOf(t, hashA)); v.Reason != "line 4" {
		t.Errorf("nobody can find the entry of a text: %q", v.Reason)
	}
}

// Neither the order nor the format makes a list different, but a label that becomes a name does: a
// list with the serial of the previous one may be published again, but not changed.
func TestEqual(t *testing.T) {
	text := mustParse(t, hashB+" - l m\n"+hashA+" n\n")
	json := mustParse(t, `{"serial": 1, "keys": [{"hash": "`+hashA+`", "name": "n"}, {"labels": ["l", "m"], "hash": "`+hashB+`"}]}`)
	if !text.Equal(json) || !json.Equal(text) {
		t.Error("other entries")
	}
	for _, other := range []string{
		"", hashA + " n\n", hashA + " n\n" + hashB + " l m", hashA + " n\n" + hashB + " - l",
		hashA + " n\n" + hashC + " - l m", hashA + "\n" + hashB,
	} {
		if d := mustParse(t, other); d.Equal(text) || text.Equal(d) {
			t.Errorf("%q: the same entries", other)
		}
	}
}

// How many machines a list has lost decides whether somebody is told.
func TestWithout(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	hashes := randomHashes(3, 500)
	for range 20 {
		var texts [2]strings.Builder
		var have [2]map[sources.EKHash]bool
		for i := range texts {
			have[i] = map[sources.EKHash]bool{}
			for _, h := range hashes {
				if random.IntN(3) == 0 {
					have[i][h] = true
					fmt.Fprintln(&texts[i], h)
				}
			}
		}
		want := 0
		for h := range have[0] {
			if !have[1][h] {
				want++
			}
		}
		older, newer := mustParse(t, texts[0].String()), mustParse(t, texts[1].String())
		if got := newer.Without(older); got != want || older.Without(older) != 0 {
			t.Errorf("lost %d, not %d", got, want)
		}
	}
}

// checkWritten fails the test unless a list, written in each of its forms, is read as
// the same list: whatever serves can be kept.
func checkWritten(t *testing.T, d *ekhashes.Document) {
	t.Helper()
	check := func(form string, data []byte) {
		t.Helper()
		again, err := ekhashes.Parse(data, ekhashes.Options{AllowEmpty: true})
		if err != nil {
			t.Fatalf("%s: %v\n%s", form, err, data)
		}
		if !again.Equal(d) || cmp.Diff(d.Header(), again.Header()) != "" {
			t.Fatalf("%s: another list: %+v\n%s", form, again.Header(), data)
		}
	}
	check("JSON", jsonOf(t, d))
	if text, err := textOf(d); err == nil {
		check("text", text)
	}
	built, err := ekhashes.New(d.Header(), d.All())
	if err != nil || !built.Equal(d) || built.Header() != d.Header() {
		t.Fatalf("the list of its entries is another one: %v", err)
	}
}

// A list is written as people read it, and as they write it.
func TestWrite(t *testing.T) {
	d, err := ekhashes.New(list.Header{Serial: 7, HasSerial: true, Name: "fl\"eet", Expires: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)},
		slices.Values([]ekhashes.Entry{
			{Hash: hashOf(t, hashC), Name: " us east ", Labels: []string{"rack:12", "a\\b", "rack:12"}},
			{Hash: hashOf(t, hashA)},
			{Hash: hashOf(t, hashB), Labels: []string{"l"}},
		}))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"version": 1, "serial": 7, "expires": "2030-01-02T03:04:05Z", "list": "fl\"eet",
 "keys": [
  "` + hashA + `",
  {"hash": "` + hashB + `", "labels": ["l"]},
  {"hash": "` + hashC + `", "name": "us east", "labels": ["rack:12", "a\\b"]}]}
`
	if got := string(jsonOf(t, d)); got != want {
		t.Error(cmp.Diff(want, got))
	}
	d, err = ekhashes.New(list.Header{}, slices.Values([]ekhashes.Entry{
		{Hash: hashOf(t, hashC), Name: "us-east", Labels: []string{"rack:12", "b"}},
		{Hash: hashOf(t, hashA)},
		{Hash: hashOf(t, hashB), Labels: []string{"-"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	text, err := textOf(d)
	if want := hashA + "\n" + hashB + " - -\n" + hashC + " us-east rack:12 b\n"; err != nil || string(text) != want {
		t.Error(err, cmp.Diff(want, string(text)))
	}
	if got := string(jsonOf(t, mustParse(t, ""))); got != "{\"version\": 1,\n \"keys\": []}\n" {
		t.Errorf("no entry: %s", got)
	}
}

// What the text format cannot express is an error, and never a list that says something else.
func TestTextCannotSay(t *testing.T) {
	entry := func(name string, labels ...string) ekhashes.Entry {
		return ekhashes.Entry{Hash: hashOf(t, hashA), Name: name, Labels: labels}
	}
	for want, test := range map[string]struct {
		header list.Header
		entry  ekhashes.Entry
	}{
		"no serial":              {list.Header{HasSerial: true}, entry("")},
		"no name of its own":     {list.Header{Name: "fleet"}, entry("")},
		"no expiry":              {list.Header{Expires: time.Now()}, entry("")},
		`cannot have "a b"`:      {list.Header{}, entry("a b")},
		`cannot have "a#"`:       {list.Header{}, entry("n", "a#")},
		`cannot have the name "`: {list.Header{}, entry("-")},
	} {
		d, err := ekhashes.New(test.header, slices.Values([]ekhashes.Entry{test.entry}))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := textOf(d); err == nil || len(text) > 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v\n%s", want, err, text)
		}
	}
}

// No list is made that could not be read.
func TestNewRefuses(t *testing.T) {
	a, b := ekhashes.Entry{Hash: sources.EKHash{1}, Name: "n"}, ekhashes.Entry{Hash: sources.EKHash{2}}
	for want, test := range map[string]struct {
		header list.Header
		second ekhashes.Entry
	}{
		"entry 1: a name with a control character":   {second: ekhashes.Entry{Name: "\x00"}},
		"entry 1: an empty label":                    {second: ekhashes.Entry{Labels: []string{""}}},
		"entry 1: a label that is not UTF-8":         {second: ekhashes.Entry{Labels: []string{"\xff"}}},
		"entry 1: more than 64 labels":               {second: ekhashes.Entry{Labels: make65()}},
		"entry 1: the hash 01":                       {second: ekhashes.Entry{Hash: a.Hash}},
		`entry 1: the name "n" again, after entry 0`: {second: ekhashes.Entry{Name: "n "}},
		"a serial although":                          {header: list.Header{Serial: 1}, second: b},
		"the expiry: not":                            {header: list.Header{Expires: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, second: b},
		"a list name with a control character":       {header: list.Header{Name: "\n"}, second: b},
	} {
		d, err := ekhashes.New(test.header, slices.Values([]ekhashes.Entry{a, test.second}))
		if d != nil || err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, not %s", err, want)
		}
	}
}

func make65() []string {
	var all []string
	for i := range sources.MaxLabels + 1 {
		all = append(all, strconv.Itoa(i))
	}
	return all
}

// A duplicate name is found among very many, and no other name is taken for a duplicate.
func TestManyNames(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n /= 10
	}
	hashes := randomHashes(1, n)
	var text strings.Builder
	for i, h := range hashes[1:] {
		fmt.Fprintf(&text, "%v machine-%d\n", h, i)
	}
	mustParse(t, text.String())
	for _, i := range []int{0, 1023, n / 2, n - 2} {
		again := fmt.Sprintf("%v machine-%d\n", hashes[0], i)
		_, err := ekhashes.Parse([]byte(text.String()+again), ekhashes.Options{})
		want := fmt.Sprintf(`line %d: the name "machine-%d" again, after line %d`, n, i, i+1)
		if err == nil || err.Error() != want {
			t.Errorf("%v, not %s", err, want)
		}
	}
}

// Entries come sorted, and may be left off anywhere.
func TestAll(t *testing.T) {
	d := mustParse(t, hashC+"\n"+hashA+"\n"+hashB)
	var got []string
	for e := range d.All() {
		if got = append(got, e.Hash.String()); len(got) == 2 {
			break
		}
	}
	if !slices.Equal(got, []string{hashA, hashB}) {
		t.Errorf("%q", got)
	}
	if all := slices.Sorted(maps.Keys(entries(d))); len(all) != 3 {
		t.Errorf("%q", all)
	}
}
