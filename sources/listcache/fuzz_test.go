package listcache_test

import (
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

const someHash = "1b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c6879285ceff6094fa556af485c"

// unusual are lists with values at the edge of what can be written down.
func unusual() []string {
	var all []string
	for _, fields := range []string{
		`"expires": "2030-01-01T00:00:00+24:00"`, `"expires": "2030-01-01T00:00:00-24:00"`,
		`"expires": "2030-01-01T00:00:00+23:59"`, `"expires": "2030-01-01T00:00:00+00:60"`,
		`"expires": "9999-12-31T23:59:59Z"`, `"expires": "9999-12-31T23:59:59-00:01"`,
		`"expires": "0000-01-01T00:00:00Z"`, `"expires": "0000-01-01T00:00:00+00:01"`,
		`"expires": "0001-01-01T00:00:00Z"`, `"expires": "0001-01-01T01:00:00+01:00"`,
		`"expires": "2030-01-01T00:00:00.123456789123Z"`, `"expires": "2030-01-01T00:00:00,5Z"`,
		`"expires": "2030-01-01T0:00:00Z"`, `"expires": "2030-06-30T23:59:60Z"`, `"expires": "2030-01-01t00:00:00z"`,
		`"serial": 18446744073709551615`, `"serial": 0`, `"serial": -0`, `"serial": 1e3`, `"serial": null`,
		`"list": ""`, `"list": " "`, `"list": "\ud800"`, `"list": "\u0000"`, `"list": "` + strings.Repeat("ü", 127) + `"`,
	} {
		all = append(all, `{`+fields+`, "keys": ["`+someHash+`"]}`)
	}
	for _, entry := range []string{
		`"name": "` + strings.Repeat("x", 250) + `"`, `"name": "\u2028"`, `"name": "\ufffd"`, `"name": " a "`,
		`"labels": ["a", "a", " a"]`, `"labels": ["` + strings.Repeat(`x", "x`, 63) + `"]`, `"name": "", "labels": []`,
	} {
		all = append(all, `{"keys": [{"hash": "`+someHash+`", `+entry+`}]}`)
	}
	return append(all, `{"keys": []}`, someHash, someHash+" - rack:12 \u2003", someHash+" node\r\n# end")
}

// wantBack fails unless a list that serves is the same after a restart.
func wantBack(t testing.TB, text string) (list *eklist.Snapshot) {
	t.Helper()
	list, err := eklist.Parse(strings.NewReader(text), eklist.Options{MaxBytes: 1 << 16})
	if err != nil {
		return nil
	}
	c, _ := newCache(t)
	if err := c.Save(t.Context(), list, meta(1)); err != nil {
		t.Fatalf("%q serves and cannot be kept: %v", text, err)
	}
	got, m, err := c.Load(t.Context())
	if err != nil {
		t.Fatalf("%q is not read again: %v", text, err)
	}
	if !got.SameEntries(list) || got.Header() != list.Header() || m != meta(1) {
		t.Fatalf("%q comes back as %d entries, %+v, not %+v", text, got.Len(), got.Header(), list.Header())
	}
	if err := list.CheckSuccession(got); err != nil {
		t.Fatalf("%q does not succeed itself: %v", text, err)
	}
	return list
}

// FuzzWhatServesIsKept holds that each list that can be served can be kept, and is the
// same after a restart. One that cannot be kept would leave an older list in the cache,
// which a restart would serve again.
func FuzzWhatServesIsKept(f *testing.F) {
	for _, text := range unusual() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { wantBack(t, text) })
}

// A list whose expiry cannot be written down is refused when it is read, and one whose
// expiry can is kept to the nanosecond. "+24:00" was served once, and then could not be
// kept.
func TestExpiriesThatCannotBeKept(t *testing.T) {
	for expires, serves := range map[string]bool{
		"2030-01-01T00:00:00+24:00":      false,
		"2030-01-01T00:00:00+00:60":      false,
		"9999-12-31T23:59:59-00:01":      false, // the year 10000 in UTC
		"0000-01-01T00:00:00+00:01":      false, // the year -1
		"2030-01-01T00:00:00,5Z":         false,
		"2030-01-01T0:00:00Z":            false,
		"2030-01-01T00:00:00+23:59":      true,
		"2030-01-01T00:00:00.123456789Z": true,
		"9999-12-31T23:59:59Z":           true,
	} {
		list := wantBack(t, `{"expires": "`+expires+`", "keys": []}`)
		if (list != nil) != serves {
			t.Errorf("%s serves: %v", expires, list != nil)
		}
	}
}

// The longest list that a limit allows fits into a cache of that limit, whatever it is
// made of: a list that did not would be lost at a restart.
func TestLongestListIsKept(t *testing.T) {
	const limit = 8 << 20
	for name, entry := range map[string]func(n uint64) string{
		"bare": func(n uint64) string { return hashOf(n).String() },
		"with labels": func(n uint64) string {
			return hashOf(n).String() + " -" + strings.Repeat(" "+strings.Repeat("x", 249), 1)
		},
	} {
		var text strings.Builder
		for n := uint64(0); text.Len() < limit-400; n++ {
			text.WriteString(entry(n) + "\n")
		}
		list, err := eklist.Parse(strings.NewReader(text.String()), eklist.Options{MaxBytes: limit})
		if err != nil {
			t.Fatal(err)
		}
		_, path := newCache(t)
		c := listcache.New(path, limit, url, listID)
		mustSave(t, c, list, meta(1))
		if got, _, err := c.Load(t.Context()); err != nil || !got.SameEntries(list) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
