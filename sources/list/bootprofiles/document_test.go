package bootprofiles_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// hexOf returns a digest of so many bytes in hex, and raw the digest.
func hexOf(b byte, size int) string { return hex.EncodeToString(raw(b, size)) }

func raw(b byte, size int) []byte { return bytes.Repeat([]byte{b}, size) }

// a, b and c are SHA-256 digests.
var a, b, c = hexOf(0xa1, 32), hexOf(0xb2, 32), hexOf(0xc3, 32)

// asked is a quote block that asks for everything that the tests need.
var asked = bootprofiles.Quote{Bank: "sha256", PCRs: []int{0, 2, 4, 7}, EventLog: true}

// one returns a file with one profile that has these members besides its name.
func one(members string) string { return `{"profiles": [{"name": "web", ` + members + `}]}` }

// pcrs is a condition that is right.
var pcrs = `"pcrs": {"sha256": {"0": ["` + a + `"]}}`

func mustParse(tb testing.TB, text string, opts bootprofiles.Options) *bootprofiles.Document {
	tb.Helper()
	d, err := bootprofiles.Parse([]byte(text), opts)
	if err != nil {
		tb.Fatalf("Parse: %v\n%s", err, text)
	}
	return d
}

// whole has every member that there is.
var whole = `{"version": 1, "serial": 7, "expires": "2030-01-01T00:00:00Z", "list": "fleet", "comment": ["two", "lines"],
 "profiles": [
  {"name": " web ", "labels": ["boot:ok", " rack ", "rack"], "expires": "2026-12-01T00:00:00Z", "comment": "all of it",
   "pcrs": {"comment": "in pcrs", "sha256": {"comment": "in the bank", "4": ["` + strings.ToUpper(b) + `"], "0": ["` + a + `", "` + b + `"]}},
   "secureboot": {"enabled": true, "comment": "of Secure Boot",
     "db": {"only": ["` + a + `"], "comment": "of db"},
     "dbx": {"contains": ["` + b + `"], "comment": "of dbx"},
     "authorities": {"only": ["` + c + `"], "comment": "of authorities"}},
   "images": {"only": ["` + a + `", "` + c + `"], "comment": []}},
  {"name": "off", "secureboot": {"enabled": false}, "comment": {"passed": [1, {"over": null}]}}]}`

func wholeProfiles() []bootprofiles.Profile {
	on, off := true, false
	A, B, C := raw(0xa1, 32), raw(0xb2, 32), raw(0xc3, 32)
	return []bootprofiles.Profile{{
		Name: "web", Labels: []string{"boot:ok", "rack"}, Expires: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC),
		Comments: map[string][]string{
			"": {"all of it"}, "pcrs": {"in pcrs"}, "pcrs.sha256": {"in the bank"}, "secureboot": {"of Secure Boot"},
			"secureboot.db": {"of db"}, "secureboot.dbx": {"of dbx"}, "secureboot.authorities": {"of authorities"},
			"images": {},
		},
		Bank: "sha256", PCRs: map[int][][]byte{0: {A, B}, 4: {B}},
		SecureBoot: &bootprofiles.SecureBoot{
			Enabled: &on, DB: [][]byte{A}, DBX: [][]byte{B}, Authorities: [][]byte{C},
		},
		Images: [][]byte{A, C},
	}, {
		Name: "off", SecureBoot: &bootprofiles.SecureBoot{Enabled: &off},
	}}
}

// Everything that a file may say is read, with the comments in their places.
func TestParse(t *testing.T) {
	d := mustParse(t, whole, bootprofiles.Options{Quote: &asked})
	header := list.Header{
		Serial: 7, HasSerial: true, Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), Name: "fleet",
	}
	if d.Header() != header || d.Len() != 2 || len(d.Warnings()) != 0 {
		t.Errorf("%+v, %d profiles, warnings %q", d.Header(), d.Len(), d.Warnings())
	}
	if diff := cmp.Diff(wholeProfiles(), d.Profiles()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"two", "lines"}, d.Comment()); diff != "" {
		t.Errorf("the comment (-want +got):\n%s", diff)
	}
	for _, text := range []string{`{"profiles": []}`, "\ufeff {\"profiles\": []}\n"} {
		if d := mustParse(t, text, bootprofiles.Options{}); d.Len() != 0 || d.Header() != (list.Header{}) {
			t.Errorf("%s: %+v", text, d)
		}
	}
}

// The tool reads a file, changes it and writes it again: nothing may get lost on the way, the
// comments included.
func TestEncode(t *testing.T) {
	d := mustParse(t, whole, bootprofiles.Options{})
	again := mustParse(t, string(bootprofiles.Encode(d)), bootprofiles.Options{Quote: &asked})
	before, after := d.Profiles(), again.Profiles()
	if diff := cmp.Diff(before, after); diff != "" || d.Header() != again.Header() || !d.Equal(again) {
		t.Errorf("(-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(d.Comment(), again.Comment()); diff != "" {
		t.Errorf("the comment (-before +after):\n%s", diff)
	}
	made, err := bootprofiles.New(d.Header(), d.Comment(), wholeProfiles())
	if err != nil || !bytes.Equal(bootprofiles.Encode(made), bootprofiles.Encode(d)) {
		t.Errorf("New: %v", err)
	}
}

// What cannot be read again is not made.
func TestNewRefuses(t *testing.T) {
	good := func() bootprofiles.Profile {
		return bootprofiles.Profile{Name: "web", Bank: "sha256", PCRs: map[int][][]byte{0: {raw(1, 32)}}}
	}
	for name, change := range map[string]func(*bootprofiles.Profile){
		"without a name":          func(p *bootprofiles.Profile) { p.Name = "" },
		"not UTF-8":               func(p *bootprofiles.Profile) { p.Name = "\xff" },
		"without a bank":          func(p *bootprofiles.Profile) { p.Bank = "" },
		"in SHA-1":                func(p *bootprofiles.Profile) { p.Bank = "sha1" },
		"with a short digest":     func(p *bootprofiles.Profile) { p.PCRs[0] = [][]byte{{1}} },
		"with PCR 24":             func(p *bootprofiles.Profile) { p.PCRs[24] = p.PCRs[0] },
		"with a PCR of no value":  func(p *bootprofiles.Profile) { p.PCRs[0] = nil },
		"without a condition":     func(p *bootprofiles.Profile) { p.PCRs, p.Bank = nil, "" },
		"with an empty condition": func(p *bootprofiles.Profile) { p.SecureBoot = &bootprofiles.SecureBoot{} },
		"with an empty rule":      func(p *bootprofiles.Profile) { p.Images = [][]byte{} },
		"that expires in 10000":   func(p *bootprofiles.Profile) { p.Expires = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"with a comment for nothing": func(p *bootprofiles.Profile) {
			p.Comments = map[string][]string{"images": {"x"}}
		},
	} {
		p := good()
		change(&p)
		if d, err := bootprofiles.New(list.Header{}, nil, []bootprofiles.Profile{p}); err == nil || d != nil {
			t.Errorf("a profile %s is made", name)
		}
	}
	for name, header := range map[string]list.Header{
		"a serial that is none": {Serial: 1}, "a name that is not UTF-8": {Name: "\xff"},
	} {
		if _, err := bootprofiles.New(header, nil, []bootprofiles.Profile{good()}); err == nil {
			t.Errorf("%s is written", name)
		}
	}
	if _, err := bootprofiles.New(list.Header{}, nil, []bootprofiles.Profile{good(), good()}); err == nil {
		t.Error("two profiles of one name are made")
	}
}

// A replay is recognised by the content of profiles: the same serial with another value is a
// replay, but with another comment or another order it is not.
func TestEqual(t *testing.T) {
	two := func(first, second string) *bootprofiles.Document {
		return mustParse(t, `{"profiles": [{"name": "x", `+first+`}, {"name": "y", `+second+`}]}`, bootprofiles.Options{})
	}
	ab := `"pcrs": {"sha256": {"0": ["` + a + `", "` + b + `"]}}`
	base := two(ab, pcrs)
	for name, other := range map[string]*bootprofiles.Document{
		"another order of values": two(`"comment": "x", "pcrs": {"sha256": {"0": ["`+b+`", "`+a+`"]}}`, pcrs),
		"another order of profiles": mustParse(t, `{"profiles": [{"name": "y", `+pcrs+`}, {"name": "x", `+ab+`}]}`,
			bootprofiles.Options{}),
	} {
		if !base.Equal(other) || base.Without(other) != 0 {
			t.Errorf("%s is taken for a change", name)
		}
	}
	for name, other := range map[string]*bootprofiles.Document{
		"one value less":  two(pcrs, pcrs),
		"another PCR":     two(strings.Replace(ab, `"0"`, `"1"`, 1), pcrs),
		"one label more":  two(ab+`, "labels": ["x"]`, pcrs),
		"an expiry":       two(ab+`, "expires": "2030-01-01T00:00:00Z"`, pcrs),
		"one more rule":   two(ab+`, "secureboot": {"enabled": true}`, pcrs),
		"one more image":  two(ab+`, "images": {"only": ["`+a+`"]}`, pcrs),
		"no second":       mustParse(t, one(ab), bootprofiles.Options{}),
		"another profile": mustParse(t, `{"profiles": [{"name": "x", `+ab+`}, {"name": "z", `+pcrs+`}]}`, bootprofiles.Options{}),
	} {
		if base.Equal(other) {
			t.Errorf("%s is taken for the same", name)
		}
	}
	if gone := mustParse(t, `{"profiles": []}`, bootprofiles.Options{}).Without(base); gone != 2 {
		t.Errorf("%d profiles are gone", gone)
	}
}

// Each of these is refused as a whole, with the place. What is not understood is a condition
// that somebody relies on: a profile without it admits more machines.
func TestProblems(t *testing.T) {
	many := func(n int, format string) string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(all, ", ")
	}
	for _, tt := range []struct{ text, want string }{
		// The file.
		{``, `byte 0: not a JSON file, which begins with {: it begins with ""`},
		{`[]`, `not a JSON file`},
		{`version: 1`, `not a JSON file, which begins with {: it begins with "version: 1"`},
		{`{`, `the file is cut off`},
		{`{"profiles": []`, `the file is cut off`},
		{`{"profiles": []} x`, `something after the file's object`},
		{`{"profiles": [],}`, `not JSON: `},
		{`{"profiles": [}`, `not JSON: `},
		{"{\"list\": \"\xff\", \"profiles\": []}", `not JSON: `},
		{`{}`, `no field "profiles": a file without profiles has "profiles": []`},
		{`{"profiles": {}}`, `profiles (byte 13): a JSON { instead of an array`},
		{`{"profiles": [], "profiles": []}`, `a member that the object has twice`},
		{`{"profiles": [], "version": 2}`, `version (byte 28): a version of the format other than 1`},
		{`{"profiles": [], "version": "1"}`, `version (byte 28): something other than a whole number`},
		{`{"profiles": [], "serial": -1}`, `serial (byte 27): something other than a whole number from 0 to 18446744073709551615`},
		{`{"profiles": [], "serial": 1e3}`, `something other than a whole number`},
		{`{"profiles": [], "serial": 18446744073709551616}`, `something other than a whole number`},
		{`{"profiles": [], "expires": "2030-01-01"}`, `expires (byte 28): not an RFC 3339 time, such as 2030-01-31T12:00:00Z`},
		{`{"profiles": [], "expires": 5}`, `expires (byte 28): a JSON number instead of a string`},
		{`{"profiles": [], "list": "a\u0001"}`, `list (byte 25): a list name with a control character`},
		{`{"profiles": [], "keys": []}`, `the member "keys" is not known`},
		{`{"profiles": [], "Version": 1}`, `the member "Version" is not known, and a condition that is misspelt must not vanish: it may be version, serial, expires, list, profiles or comment`},
		{`{"profiles": [], "serial": null}`, `serial (byte 27): null: write a value, or remove it`},
		{`{"profiles": [], "comment": null}`, `comment (byte 28): null`},
		{`{"profiles": [` + many(bootprofiles.MaxProfiles+1, `{"name": "p%d", `+pcrs+`}`) + `]}`, `1025 elements, at most 1024 are allowed`},
		{`{"comment": "` + strings.Repeat("x", bootprofiles.MaxBytes) + `", "profiles": []}`, `at most 4194304 are allowed`},
		{`{"comment": ` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `, "profiles": []}`, `more than 32 levels of brackets`},
		{`{"comment": [` + strings.Repeat("0,", 1<<17) + `0], "profiles": []}`, `more than 131072 values`},

		// A profile.
		{`{"profiles": [5]}`, `profiles[0] (byte 14): a JSON number instead of an object`},
		{`{"profiles": [null]}`, `profiles[0] (byte 14): a JSON null instead of an object`},
		{`{"profiles": [{"name": "web"}]}`, `profiles[0] (byte 14): no condition, so any machine would meet it: write pcrs, secureboot or images`},
		{one(`"labels": ["x"], "expires": "2030-01-01T00:00:00Z", "comment": "x"`), `no condition`},
		{`{"profiles": [{` + pcrs + `}]}`, `profiles[0] (byte 14): no field "name"`},
		{`{"profiles": [{"name": "", ` + pcrs + `}]}`, `profiles[0].name (byte 23): an empty name`},
		{`{"profiles": [{"name": " ", ` + pcrs + `}]}`, `an empty name`},
		{`{"profiles": [{"name": 5, ` + pcrs + `}]}`, `profiles[0].name (byte 23): a JSON number instead of a string`},
		{`{"profiles": [{"name": "a\n", ` + pcrs + `}]}`, `a profile's name with a control character`},
		{`{"profiles": [{"name": "` + strings.Repeat("x", 251) + `", ` + pcrs + `}]}`, `a profile's name of 251 bytes, more than 250`},
		{`{"profiles": [{"name": "web", ` + pcrs + `}, {"name": " web", ` + pcrs + `}]}`, `the name "web" for the second time`},
		{one(pcrs + `, "pcr": {}`), `the member "pcr" is not known`},
		{one(pcrs + `, "secureBoot": {"enabled": true}`), `the member "secureBoot" is not known, and a condition that is misspelt must not vanish: it may be name, labels, expires, pcrs, secureboot, images or comment`},
		{one(pcrs + `, "expires": "tomorrow"`), `profiles[0].expires (byte `},
		{one(pcrs + `, "expires": null`), `expires (byte 138): null: write a value`},
		{one(pcrs + `, "labels": "x"`), `profiles[0].labels (byte 137): a JSON string instead of an array`},
		{one(pcrs + `, "labels": ["x", ""]`), `profiles[0].labels[1] (byte 143): an empty label`},
		{one(pcrs + `, "labels": ["` + strings.Repeat("x", 250) + `"]`), `a label of 250 bytes, more than 249`},
		{one(pcrs + `, "labels": ["a\tb"]`), `a label with a control character`},
		{one(pcrs + `, "labels": [null]`), `a JSON null instead of a string`},
		{one(pcrs + `, "labels": [` + many(65, `"l%d"`) + `]`), `profiles[0].labels[64] (byte 576): more than 64 labels`},

		// PCRs.
		{one(`"pcrs": null`), `profiles[0].pcrs (byte 38): null`},
		{one(`"pcrs": []`), `profiles[0].pcrs (byte 38): a JSON [ instead of an object`},
		{one(`"pcrs": {}`), `no bank, so any machine would meet it: write sha256 or sha384, or remove pcrs`},
		{one(`"pcrs": {"comment": "x"}`), `no bank`},
		{one(`"pcrs": {"sha1": {"0": ["` + hexOf(1, 20) + `"]}}`), `the member "sha1" is not known, and a condition that is misspelt must not vanish: it may be sha256, sha384 or comment`},
		{one(`"pcrs": {"sha256": {"0": ["` + a + `"]}, "sha384": {"0": ["` + hexOf(1, 48) + `"]}}`), `two banks, of which a machine quotes only one`},
		{one(`"pcrs": {"sha256": {}}`), `profiles[0].pcrs.sha256 (byte 49): no PCR, so any machine would meet it`},
		{one(`"pcrs": {"sha256": {"24": ["` + a + `"]}}`), `the member "24" is not known, and a condition that is misspelt must not vanish: it may be a PCR from 0 to 23 or comment`},
		{one(`"pcrs": {"sha256": {"00": ["` + a + `"]}}`), `the member "00" is not known`},
		{one(`"pcrs": {"sha256": {"-0": ["` + a + `"]}}`), `the member "-0" is not known`},
		{one(`"pcrs": {"sha256": {"0": []}}`), `an empty list, which no machine meets: write a value`},
		{one(`"pcrs": {"sha256": {"0": "` + a + `"}}`), `a JSON string instead of an array`},
		{one(`"pcrs": {"sha256": {"0": ["` + a[1:] + `"]}}`), `is not 64 hex digits`},
		{one(`"pcrs": {"sha256": {"0": ["` + hexOf(1, 48) + `"]}}`), `is not 64 hex digits`},
		{one(`"pcrs": {"sha384": {"0": ["` + a + `"]}}`), `is not 96 hex digits`},
		{one(`"pcrs": {"sha256": {"0": ["0x` + a[2:] + `"]}}`), `profiles[0].pcrs.sha256.0[0] (byte 56): "0xa1a1`},
		{one(`"pcrs": {"sha256": {"0": ["` + a + `", "` + strings.ToUpper(a) + `"]}}`), `0[1] (byte 124): the value ` + a + ` for the second time`},
		{one(`"pcrs": {"sha256": {"0": ["` + a + `"], "0": ["` + b + `"]}}`), `a member that the object has twice`},
		{one(`"pcrs": {"sha256": {"0": [` + many(bootprofiles.MaxValues+1, `"%064x"`) + `]}}`), `4097 elements, at most 4096 are allowed`},

		// What needs the log.
		{one(`"secureboot": {}`), `no condition: write enabled, db, dbx or authorities, or remove secureboot`},
		{one(`"secureboot": true`), `a JSON true instead of an object`},
		{one(`"secureboot": {"enable": true}`), `the member "enable" is not known`},
		{one(`"secureboot": {"enabled": null}`), `profiles[0].secureboot.enabled (byte 56): null`},
		{one(`"secureboot": {"enabled": "true"}`), `a JSON string instead of true or false`},
		{one(`"secureboot": {"enabled": 1}`), `a JSON number instead of true or false`},
		{one(`"secureboot": {"db": {}}`), `profiles[0].secureboot.db (byte 51): no condition: write only, or remove it`},
		{one(`"secureboot": {"db": {"only": []}}`), `an empty list`},
		{one(`"secureboot": {"db": {"contains": ["` + a + `"]}}`), `the member "contains" is not known, and a condition that is misspelt must not vanish: it may be only or comment`},
		{one(`"secureboot": {"dbx": {"only": ["` + a + `"]}}`), `the member "only" is not known`},
		{one(`"secureboot": {"dbx": {"contains": ["` + hexOf(1, 48) + `"]}}`), `is not 64 hex digits`},
		{one(`"secureboot": {"authorities": ["` + a + `"]}`), `profiles[0].secureboot.authorities (byte 60): a JSON [ instead of an object`},
		{one(`"images": {"only": ["` + a + `", "` + hexOf(1, 48) + `"]}`), `is not 64 hex digits`},
		{one(`"images": {"only": ["` + hexOf(1, 48) + `", "` + a + `"]}`), `is not 96 hex digits`},
		{one(`"images": {"only": ["` + hexOf(1, 48) + `"]}, ` + pcrs), `profiles[0].images.only[0] (byte 50): "0101`},
	} {
		d, err := bootprofiles.Parse([]byte(tt.text), bootprofiles.Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.300s\n got  %.500v\n want %s", tt.text, err, tt.want)
		}
		if d != nil {
			t.Errorf("%.200s: a document beside an error", tt.text)
		}
	}
}

// A profile that pins a PCR that any program can reset requires nothing, and its author is told.
func TestWarnings(t *testing.T) {
	d := mustParse(t, one(`"pcrs": {"sha256": {"7": ["`+a+`"], "22": ["`+a+`"], "23": ["`+a+`"]}}`), bootprofiles.Options{})
	if w := d.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0], "profiles[0].pcrs: PCR 23 can be reset and given a value of choice") {
		t.Errorf("%q", w)
	}
}

// A person learns of all mistakes at once, up to a limit.
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := bootprofiles.Parse([]byte(`{"version": 2, "profiles": [{"name": 5}, {"pcrs": {"sha256": {"0": ["x"]}, "md5": {}}}]}`), bootprofiles.Options{})
	for _, want := range []string{`other than 1`, `[0].name`, `no condition`, `no field "name"`, `"x" is not`, `"md5"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told: %v", want, err)
		}
	}
	_, err = bootprofiles.Parse([]byte(`{"profiles": [`+strings.Repeat("0, ", 1000)+`0]}`), bootprofiles.Options{})
	if err == nil || !strings.Contains(err.Error(), "there may be more than these 20 mistakes") {
		t.Errorf("%v", err)
	}
}

// A file that no machine can meet, since nobody is asked for what it needs, is refused: the
// last good file stays.
func TestQuote(t *testing.T) {
	with := func(q bootprofiles.Quote) bootprofiles.Options { return bootprofiles.Options{Quote: &q} }
	sha384 := `"pcrs": {"sha384": {"0": ["` + hexOf(1, 48) + `"]}}`
	for _, tt := range []struct {
		text string
		q    bootprofiles.Quote
		want string
	}{
		{pcrs, bootprofiles.Quote{Bank: "sha256", PCRs: []int{7}}, `profiles[0].pcrs.sha256.0 (byte 55): machines do not quote PCR 0: add it to pcrs in the quote block, or remove it here`},
		{pcrs, bootprofiles.Quote{Bank: "sha384", PCRs: []int{0}}, `profiles[0].pcrs.sha256 (byte 49): machines quote the bank sha384 by the quote block, and not sha256`},
		{sha384, bootprofiles.Quote{Bank: "sha256", PCRs: []int{0}}, `machines quote the bank sha256`},
		{`"secureboot": {"enabled": true}`, bootprofiles.Quote{Bank: "sha256", PCRs: []int{4}, EventLog: true}, `profiles[0].secureboot (byte 44): it needs PCR 7, which machines do not quote: add it to pcrs in the quote block`},
		{`"secureboot": {"enabled": true}`, bootprofiles.Quote{Bank: "sha256", PCRs: []int{7}}, `it needs the event log, which machines are not asked for: write event_log = "optional" or "required" in the quote block`},
		{`"images": {"only": ["` + a + `"]}`, bootprofiles.Quote{Bank: "sha256", PCRs: []int{7}, EventLog: true}, `profiles[0].images (byte 40): it needs PCR 4, which machines do not quote`},
		{`"images": {"only": ["` + a + `"]}`, bootprofiles.Quote{Bank: "sha256", PCRs: []int{4}}, `it needs the event log`},
		{`"images": {"only": ["` + a + `"]}`, bootprofiles.Quote{Bank: "sha384", PCRs: []int{4}, EventLog: true}, `is not 96 hex digits`},
	} {
		_, err := bootprofiles.Parse([]byte(one(tt.text)), with(tt.q))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s with %+v\n got  %v\n want %s", tt.text, tt.q, err, tt.want)
		}
		mustParse(t, one(tt.text), bootprofiles.Options{}) // nobody knows what is asked
	}
	mustParse(t, one(sha384+`, "images": {"only": ["`+hexOf(2, 48)+`"]}`), with(bootprofiles.Quote{Bank: "sha384", PCRs: []int{0, 4}, EventLog: true}))
	mustParse(t, one(pcrs), with(bootprofiles.Quote{Bank: "sha256", PCRs: []int{0}}))
}

// No content of a file crashes the server. An accepted file has only profiles with a condition, and
// writing it and reading it again gives the same profiles.
func FuzzBootProfiles(f *testing.F) {
	for _, text := range []string{
		whole, `{"profiles": []}`, one(pcrs), one(`"images": {"only": ["` + hexOf(1, 48) + `"]}`),
		one(`"secureboot": {"dbx": {"contains": ["` + a + `"]}}, "comment": [[[{}]]]`), `{"profiles": [null, {"name": 5}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := bootprofiles.Parse(data, bootprofiles.Options{})
		if err != nil {
			_ = err.Error()
			return
		}
		for _, p := range d.Profiles() {
			s := p.SecureBoot
			if p.Name == "" || len(p.PCRs) == 0 && len(p.Images) == 0 && (s == nil || s.Enabled == nil && s.DB == nil && s.DBX == nil && s.Authorities == nil) {
				t.Errorf("a profile without a name or a condition: %+v", p)
			}
		}
		text := bootprofiles.Encode(d)
		again, err := bootprofiles.Parse(text, bootprofiles.Options{})
		if len(text) > bootprofiles.MaxBytes {
			return // the indentation is too much
		}
		if err != nil || !d.Equal(again) || d.Header() != again.Header() || !bytes.Equal(text, bootprofiles.Encode(again)) {
			t.Errorf("what is written is read as another: %v\n%s", err, text)
		}
		_, _ = bootprofiles.Parse(data, bootprofiles.Options{Quote: &asked})
	})
}
