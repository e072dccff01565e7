package ekhashes_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// The reference reads lists slowly and plainly, for the fuzz targets to compare
// with.

var errReference = errors.New("refused")

type reference struct {
	list   map[string]sources.Attributes
	names  map[string]bool
	header list.Header
}

func (r *reference) add(hash, name string, labels []string) error {
	raw, err := hex.DecodeString(hash)
	name = trim(name)
	if err != nil || len(raw) != 32 || len(labels) > 64 || !rightText(name, 250) || name != "" && r.names[name] {
		return errReference
	}
	attrs := sources.Attributes{Name: name}
	for _, l := range labels {
		if l = trim(l); l == "" || !rightText(l, 249) {
			return errReference
		}
		if !slices.Contains(attrs.Labels, l) {
			attrs.Labels = append(attrs.Labels, l)
		}
	}
	hash = strings.ToLower(hash)
	if _, twice := r.list[hash]; twice {
		return errReference
	}
	r.list[hash] = attrs
	r.names[name] = true
	return nil
}

func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return unicode.Is(unicode.Zs, r) })
}

func rightText(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// readReference reads a list in either form.
func readReference(list []byte) (r *reference, err error) {
	r = &reference{list: map[string]sources.Attributes{}, names: map[string]bool{}}
	list = bytes.TrimPrefix(list, []byte("\ufeff"))
	if bytes.HasPrefix(bytes.TrimLeft(list, " \t\r\n"), []byte("{")) {
		err = r.readJSON(list)
	} else {
		err = r.readText(string(list))
	}
	return r, err
}

func (r *reference) readText(list string) error {
	for line := range strings.SplitSeq(list, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if !utf8.ValidString(line) || strings.ContainsFunc(strings.ReplaceAll(line, "\t", " "), unicode.IsControl) {
			return errReference
		}
		line, _, _ = strings.Cut(line, "#")
		words := strings.FieldsFunc(line, func(c rune) bool { return c == ' ' || c == '\t' })
		if len(words) == 0 {
			continue
		}
		words = append(words, "-")
		if len(words) > 2 {
			words = words[:len(words)-1]
		}
		name := words[1]
		if name == "-" {
			name = ""
		}
		if err := r.add(words[0], name, words[2:]); err != nil {
			return err
		}
	}
	return nil
}

type member struct {
	name  string
	value json.RawMessage
}

// members reads an object whose names differ.
func members(d *json.Decoder) ([]member, error) {
	if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
		return nil, errReference
	}
	var all []member
	for d.More() {
		tok, err := d.Token()
		name, ok := tok.(string)
		if err != nil || !ok || slices.ContainsFunc(all, func(m member) bool { return m.name == name }) || len(all) == 256 {
			return nil, errReference
		}
		m := member{name: name}
		if err := d.Decode(&m.value); err != nil {
			return nil, errReference
		}
		all = append(all, m)
	}
	if _, err := d.Token(); err != nil {
		return nil, errReference
	}
	return all, nil
}

// strictTime is RFC 3339, 5.6, but for the ranges that time.Parse checks.
var strictTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,40})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

var number = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)

func (r *reference) readJSON(list []byte) error {
	if !utf8.Valid(list) {
		return errReference
	}
	d := json.NewDecoder(bytes.NewReader(list))
	all, err := members(d)
	if err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errReference
	}
	keys := false
	for _, m := range all {
		if m.name == "keys" {
			keys = true
		} else if string(m.value) == "null" {
			continue
		}
		if err := r.readMember(m); err != nil {
			return err
		}
	}
	if !keys {
		return errReference
	}
	return nil
}

func (r *reference) readMember(m member) error {
	switch m.name {
	case "version":
		if string(m.value) != "1" {
			return errReference
		}
	case "serial":
		n, err := strconv.ParseUint(string(m.value), 10, 64)
		if !number.Match(m.value) || err != nil {
			return errReference
		}
		r.header.Serial, r.header.HasSerial = n, true
	case "list":
		if json.Unmarshal(m.value, &r.header.Name) != nil || !rightText(r.header.Name, 255) {
			return errReference
		}
	case "expires":
		var text string
		if json.Unmarshal(m.value, &text) != nil {
			return errReference
		}
		var err error
		r.header.Expires, err = time.Parse(time.RFC3339, text)
		if err != nil || r.header.Expires.IsZero() || !strictTime.MatchString(text) || r.header.Expires.UTC().Year() > 9999 ||
			r.header.Expires.UTC().Year() < 0 {
			return errReference
		}
	case "keys":
		var entries []json.RawMessage
		if json.Unmarshal(m.value, &entries) != nil || m.value[0] != '[' {
			return errReference
		}
		for _, e := range entries {
			if err := r.readEntry(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reference) readEntry(entry json.RawMessage) error {
	var hash, name string
	var labels []*string
	if entry[0] == '"' {
		json.Unmarshal(entry, &hash)
		return r.add(hash, "", nil)
	}
	all, err := members(json.NewDecoder(bytes.NewReader(entry)))
	if err != nil {
		return err
	}
	for _, m := range all {
		var into any
		switch m.name {
		case "hash":
			into = &hash
		case "name":
			into = &name
		case "labels":
			into = &labels
		default:
			continue
		}
		if json.Unmarshal(m.value, into) != nil {
			return errReference
		}
	}
	values := make([]string, len(labels))
	for i, l := range labels {
		if l == nil {
			return errReference
		}
		values[i] = *l
	}
	return r.add(hash, name, values)
}

// compare reads a list with Parse and with the reference.
func compare(t *testing.T, data []byte) {
	want, wantErr := readReference(data)
	s, err := ekhashes.Parse(data, ekhashes.Options{AllowEmpty: true})
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%v, the reference: %v", err, wantErr)
	}
	if err != nil {
		mistakes := list.FormatErrors{}
		errors.As(err, &mistakes)
		most := 600 * max(1, len(mistakes)) // bytes
		if s != nil || len(mistakes) > list.MaxMistakes || len(err.Error()) > most ||
			strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Fatalf("list: %v, %d mistakes, error %q", s != nil, len(mistakes), err)
		}
		return
	}
	if diff := cmp.Diff(want.list, entries(s)); diff != "" {
		t.Fatalf("entries (-reference +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.header, s.Header()); diff != "" {
		t.Fatalf("header (-reference +got):\n%s", diff)
	}
	for hash := range want.list {
		if !s.Verdict(hashOf(t, hash)).Listed {
			t.Fatalf("does not list %s", hash)
		}
	}
	checkWritten(t, s)
}

// FuzzText stops a text that Parse reads as another list than it is, or that
// makes it panic.
func FuzzText(f *testing.F) {
	for _, seed := range []string{
		"", "\n", hashA, hashA + "\r\n" + hashB + " n l m\r\n# c\n", "\ufeff" + hashA + " - l # c\n" + hashB + " n\n" + hashC + " n",
		strings.ToUpper(hashA) + "\n" + hashA + "\n", hashA + "\r" + hashB, hashA + " \x00", hashA + " " + strings.Repeat("é", 128),
		hashA + " n " + spaced(65), hashA[1:], hashA + " a\u0085", strings.Repeat("\n", 300_000),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		if bytes.HasPrefix(bytes.TrimLeft(bytes.TrimPrefix(list, []byte("\ufeff")), " \t\r\n"), []byte("{")) {
			t.Skip("JSON: see FuzzJSON")
		}
		compare(t, list)
	})
}

// FuzzJSON stops a JSON list that Parse reads as another list than it is, or that
// makes it panic.
func FuzzJSON(f *testing.F) {
	a, b := `"`+hashA+`"`, `"`+hashB+`"`
	for _, seed := range []string{
		`{"keys": []}`, `{"keys": [` + a + `, ` + b + `]}`, `{"keys": null}`, `{}`,
		`{"version": 1, "serial": 42, "expires": "2030-01-01T00:00:00Z", "list": "f", "keys": [{"hash": ` + a + `, "name": "n", "labels": ["l", "l"]}]}`,
		`{"keys": [{"hash": ` + a + `, "name": "n"}, {"name": "\u006e", "hash": ` + b + `}], "x": [{"y": {}}]}`,
		`{"keys": [` + a + `], "k\u0065ys": []}`, `{"serial": -0, "keys": []}`, `{"keys": []} 1`, `{"version": 1.0, "keys": [{"labels": [null]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		if bytes.Contains(bytes.ToLower(list), []byte(`\ud`)) {
			t.Skip("encoding/json accepts half a surrogate pair")
		}
		if len(list) > 200_000 || bytes.Count(list, []byte("[")) > 1000 || bytes.Count(list, []byte("{")) > 1000 {
			t.Skip("encoding/json counts nesting in another way")
		}
		compare(t, append([]byte("{"), list...))
		compare(t, list)
	})
}
