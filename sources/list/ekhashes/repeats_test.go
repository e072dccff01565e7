package ekhashes_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// mistakesOf returns the mistakes in an error of Parse, as "line: mistake".
func mistakesOf(err error) (all []string) {
	several, ok := errors.AsType[list.FormatErrors](err)
	if one, is := errors.AsType[*list.FormatError](err); !ok && is {
		several = list.FormatErrors{one}
	}
	for _, one := range several {
		all = append(all, fmt.Sprintf("%d: %v", one.Line, one))
	}
	return all
}

// A person who corrects a list sees all duplicates at once, together with the other mistakes, in
// the order of the list, and each with both places.
func TestRepeatsAreToldAtOnce(t *testing.T) {
	_, err := parse(t, hashB+" n\n"+hashB+" n\n"+hashA+"\nx\n"+hashB+"\n"+hashA+" n\n", ekhashes.Options{})
	want := []string{
		"2: line 2: the hash " + hashB + " again, after line 1",
		`4: line 4: 1 characters instead of a hash's 64 hex digits: "x"`,
		"5: line 5: the hash " + hashB + " again, after line 1",
		`6: line 6: the name "n" again, after line 1`,
		"6: line 6: the hash " + hashA + " again, after line 3",
	}
	if d := cmp.Diff(want, mistakesOf(err)); d != "" {
		t.Error(d)
	}
	_, err = parse(t, "\ufeff{\"keys\": [\n \""+hashA+"\",\n \"x\",\n {\"name\": \"n\",\n  \"hash\": \""+hashB+"\"},\n {\"hash\": \""+
		hashA+"\", \"name\": \"n\"}]}\n", ekhashes.Options{})
	want = []string{
		`3: keys[1] (byte 81): 1 characters instead of a hash's 64 hex digits: "x"`,
		`6: keys[3] (byte 190): the name "n" again, after keys[2] (byte 111)`,
		"6: keys[3] (byte 190): the hash " + hashA + " again, after keys[0] (byte 12)",
	}
	if d := cmp.Diff(want, mistakesOf(err)); d != "" {
		t.Error(d)
	}
}

// A list that repeats one hash or one name many times is refused because of the first repeats
// alone: its author must not choose how much memory and log they take.
func TestManyRepeats(t *testing.T) {
	for name, text := range map[string]string{
		"hash": strings.Repeat(hashA+"\n", 50_000), "name": hashA + " n\n" + strings.Repeat(hashB+" n\n", 50_000),
	} {
		_, err := parse(t, text, ekhashes.Options{})
		all := mistakesOf(err)
		if len(all) != list.MaxMistakes || !strings.HasPrefix(all[0], "2: line 2: ") {
			t.Errorf("%s: %q", name, all)
		}
	}
}

// A list that was cut off, saved by another program or joined from others says so.
func TestWhatBefellTheFile(t *testing.T) {
	utf16 := func(s string) string { return strings.Join(strings.Split(s, ""), "\x00") + "\x00" }
	for name, test := range map[string]struct{ text, want string }{
		"cut off":       {hashA + "\n" + hashB[:31], `31 characters instead of a hash's 64 hex digits: "` + hashB[:31] + `"; the list ends here, and may be cut off`},
		"not cut off":   {hashA + "\n" + hashB[:31] + "\n", `31 characters instead of a hash's 64 hex digits: "` + hashB[:31] + `"`},
		"joined":        {hashA + "\n\ufeff" + hashB + " name\n", "the hash has a byte order mark in front of it, as if lists had been joined: remove it"},
		"UTF-16":        {"\xff\xfe" + utf16(hashA+"\n"), "UTF-16, as PowerShell and some programs on Windows write it: save the list as UTF-8"},
		"UTF-16, bare":  {utf16(`{"keys": []}`), "UTF-16, as PowerShell"},
		"UTF-16, big":   {"\xfe\xff\x00{", "UTF-16, as PowerShell"},
		"JSON, cut off": {`{"keys": ["` + hashA + `",`, "the list is cut off"},
	} {
		_, err := parse(t, test.text, ekhashes.Options{})
		all := mistakesOf(err)
		if len(all) != 1 || !strings.Contains(all[0], test.want) || strings.HasSuffix(all[0], "off") != strings.HasSuffix(test.want, "off") {
			t.Errorf("%s: %q, want %q", name, all, test.want)
		}
	}
}

// Entries from several places say where they are from. What two of them say in the same words
// counts once if that is asked for; what they say differently never does.
func TestBuilder(t *testing.T) {
	place := func(at uint32, hash sources.EKHash) string { return fmt.Sprintf("file %d of %.2s", at, hash) }
	a, b := ekhashes.Entry{Hash: hashOf(t, hashA), Name: "n", Labels: []string{"l"}}, ekhashes.Entry{Hash: hashOf(t, hashB)}
	named := ekhashes.Entry{Hash: hashOf(t, hashB), Name: "n"}
	build := func(merge bool, entries ...ekhashes.Entry) (*ekhashes.Document, string) {
		builder := ekhashes.NewBuilder(place, merge)
		for i, e := range entries {
			if err := builder.Add(uint32(i), e); err != nil {
				t.Fatal(err)
			}
		}
		d, err := builder.Build(list.Header{})
		if (d == nil) != (err != nil) || builder.Added() != len(entries) {
			t.Fatal(d, err, builder.Added())
		}
		return d, fmt.Sprint(err)
	}
	if d, _ := build(true, a, b, a, b, b); d.Len() != 2 {
		t.Errorf("%d entries", d.Len())
	}
	if _, err := build(false, a, b, a); err != "file 2 of aa: the hash "+hashA+" again, after file 0 of aa" {
		t.Error(err)
	}
	if _, err := build(true, a, b, named); err != `file 2 of bb: the name "n" again, after file 0 of aa; `+
		"file 2 of bb: the hash "+hashB+" with another name or other labels than in file 1 of bb" {
		t.Error(err)
	}
	builder := ekhashes.NewBuilder(place, true)
	if err := builder.Add(7, ekhashes.Entry{Hash: b.Hash, Name: "\x00"}); err == nil || err.Error() != "file 7 of bb: a name with a control character" {
		t.Error(err)
	}
	if d, err := builder.Build(list.Header{}); err != nil || d.Len() != 0 {
		t.Errorf("what is refused is left out: %v", err)
	}
}

// A single entry is parsed like the same entry in a list.
func TestParseEntry(t *testing.T) {
	for text, want := range map[string]string{
		`"` + hashA + `"`: "",
		` {"hash": "` + hashA + `", "name": "n", "labels": ["a", "a"], "owner": 5}` + "\n": "",
		`{"hash": "` + hashA + `", "label": ["a"]}`:                                        `the field "label" means nothing: is it meant to be "labels"?`,
		`{"hash": "` + hashA[1:] + `"}`:                                                    "63 characters instead of a hash's 64 hex digits",
		`{"name": "n"}`:                                                                    `no field "hash"`,
		`{"hash": "` + hashA:                                                               "the list is cut off",
		`"` + hashA + `", "` + hashB + `"`:                                                 "something after the entry",
		`["` + hashA + `"]`:                                                                "a JSON [ instead of a string",
		``:                                                                                 "the list is cut off",
	} {
		e, doubts, err := ekhashes.ParseEntry([]byte(text))
		inList, listErr := parse(t, `{"keys": [`+text+`]}`, ekhashes.Options{})
		if accepted := listErr == nil && inList.Len() == 1; accepted != (err == nil) {
			t.Errorf("%s: %v, in a list %v", text, err, listErr)
		}
		got := strings.Join(doubts, "; ")
		if err != nil {
			got = err.Error()
		} else if in, ok := inList.Lookup(e.Hash); !ok || cmp.Diff(in, e) != "" {
			t.Errorf("%s: %v, in a list %v", text, e, in)
		}
		if !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
