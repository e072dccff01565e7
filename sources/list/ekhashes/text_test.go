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

// digits returns the hash that is made of one hex digit.
func digits(digit string) string { return strings.Repeat(digit, 64) }

var hashA, hashB, hashC = digits("a"), digits("b"), digits("c")

func parse(t *testing.T, text string, opts ekhashes.Options) (*ekhashes.Document, error) {
	t.Helper()
	return ekhashes.Parse([]byte(text), opts)
}

// entries returns a list as a map.
func entries(d *ekhashes.Document) map[string]sources.Attributes {
	m := map[string]sources.Attributes{}
	for e := range d.All() {
		m[e.Hash.String()] = sources.Attributes{Name: e.Name, Labels: e.Labels}
	}
	return m
}

func named(name string, labels ...string) sources.Attributes {
	return sources.Attributes{Name: name, Labels: labels}
}

// spaced returns n words.
func spaced(n int) string {
	words := make([]string, n)
	for i := range words {
		words[i] = fmt.Sprintf("l%d", i)
	}
	return strings.Join(words, " ")
}

// TestText has what a text may be. A form that is refused although it is
// documented leaves machines without a list.
func TestText(t *testing.T) {
	long := strings.Repeat("é", 125) // 250 bytes
	for name, test := range map[string]struct {
		list string
		want map[string]sources.Attributes
	}{
		"one":              {hashA + "\n", map[string]sources.Attributes{hashA: {}}},
		"no line end":      {hashA, map[string]sources.Attributes{hashA: {}}},
		"CRLF":             {hashA + "\r\n" + hashB + "\r\n", map[string]sources.Attributes{hashA: {}, hashB: {}}},
		"CR at the end":    {hashA + "\r", map[string]sources.Attributes{hashA: {}}},
		"upper case":       {strings.ToUpper(hashA) + "\n", map[string]sources.Attributes{hashA: {}}},
		"zeros":            {digits("0") + "\n" + digits("f"), map[string]sources.Attributes{digits("0"): {}, digits("f"): {}}},
		"byte order mark":  {"\ufeff" + hashA, map[string]sources.Attributes{hashA: {}}},
		"blank lines":      {"\n\r\n \t\n" + hashA + "\n\n\n" + hashB + "\n\n", map[string]sources.Attributes{hashA: {}, hashB: {}}},
		"leading blanks":   {" \t" + hashA + " \t\n", map[string]sources.Attributes{hashA: {}}},
		"comments":         {"# \t[1]\n" + hashA + "#b\n" + hashB + " m # c d\n #\n" + hashC + " # {", map[string]sources.Attributes{hashA: {}, hashB: named("m"), hashC: {}}},
		"comment in word":  {hashA + " m#1 x", map[string]sources.Attributes{hashA: named("m")}},
		"name":             {hashA + " us-east-17\n", map[string]sources.Attributes{hashA: named("us-east-17")}},
		"name and labels":  {hashA + " us-east-17\track:12  env:prod", map[string]sources.Attributes{hashA: named("us-east-17", "rack:12", "env:prod")}},
		"labels":           {hashA + " - rack:12 -", map[string]sources.Attributes{hashA: named("", "rack:12", "-")}},
		"no name":          {hashA + " -\n" + hashB + " -", map[string]sources.Attributes{hashA: {}, hashB: {}}},
		"a label twice":    {hashA + " n a b a", map[string]sources.Attributes{hashA: named("n", "a", "b")}},
		"names differ":     {hashA + " n\n" + hashB + " N", map[string]sources.Attributes{hashA: named("n"), hashB: named("N")}},
		"longest name":     {hashA + " " + long, map[string]sources.Attributes{hashA: named(long)}},
		"64 labels":        {hashA + " n " + spaced(64), map[string]sources.Attributes{hashA: named("n", strings.Fields(spaced(64))...)}},
		"labels in common": {hashA + " - a\n" + hashB + " - a", map[string]sources.Attributes{hashA: named("", "a"), hashB: named("", "a")}},
		"plain and named":  {hashA + "\n" + hashB + " b\n" + hashC, map[string]sources.Attributes{hashA: {}, hashB: named("b"), hashC: {}}},
		"long line":        {hashA + " n #" + strings.Repeat("x", 200_000), map[string]sources.Attributes{hashA: named("n")}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.list, ekhashes.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, entries(s)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if s.Len() != len(test.want) || s.Header() != (list.Header{}) {
				t.Errorf("%d entries, header %+v", s.Len(), s.Header())
			}
		})
	}
}

// TestTextRefused: a list that is not whole and right admits nobody, and says
// where it is wrong. Half of a list would cut off machines, or forget revoked
// ones; a control character would forge lines in a log.
func TestTextRefused(t *testing.T) {
	long := strings.Repeat("x", 251)
	for name, test := range map[string]struct{ list, want string }{
		"empty":            {"", "line 1: no entry"},
		"comments only":    {"# none\n\n", "line 1: no entry"},
		"blanks only":      {" \t\r\n", "line 1: no entry"},
		"63 digits":        {"\n" + hashA[1:] + "\n", "line 2: 63 characters instead of a hash's 64 hex digits"},
		"65 digits":        {hashA + "\n" + hashB + "b\n", "line 2: 65 characters instead of a hash's 64 hex digits"},
		"no hex digit":     {hashA + "\n" + hashB + "\n" + hashC[1:] + "g\n", "line 3: 64 characters that are not all hex digits"},
		"0x":               {"0x" + hashA[2:] + "\n", "line 1: 64 characters that are not"},
		"cut":              {hashA + "\n" + hashB[:10], "line 2: 10 characters"},
		"HTML":             {"<!DOCTYPE html>\n<html>", `line 1: HTML or XML, not a list of EK hashes: it begins with "<!DOCTYPE"`},
		"array":            {`["` + hashA + `"]`, `line 1: a JSON array, not a list of EK hashes: write {"keys": […]}`},
		"hash twice":       {"\n" + hashA + "\n# c\n" + hashB + "\n" + strings.ToUpper(hashA) + "\n", "line 5: the hash " + hashA + " again, after line 2"},
		"hash twice named": {hashA + " a\n" + hashA + " b", "line 2: the hash " + hashA + " again, after line 1"},
		"name twice":       {"\n" + hashA + " n\n" + hashC + "\n" + hashB + " n x\n", `line 4: the name "n" again, after line 2`},
		"name too long":    {hashA + "\n" + hashB + " " + long, "line 2: a name of 251 bytes, more than 250"},
		"name of 10 KB":    {hashA + " " + strings.Repeat("x", 10<<10), "line 1: a name of 10240 bytes, more than 250"},
		"label too long":   {hashA + " - " + long, "line 1: a label of 251 bytes, more than 249"},
		"65 labels":        {hashA + " n " + spaced(65), "line 1: more than 64 labels"},
		"thousand labels":  {hashA + " n " + spaced(1000), "line 1: more than 64 labels"},
		"CR in a line":     {hashA + "\r" + hashB + "\n", "line 1: a control character"},
		"zero bytes":       {hashA + "\n" + strings.Repeat("\x00", 100), "line 2: a control character"},
		"escape":           {hashA + " \x1b[31m", "line 1: a control character"},
		"DEL":              {hashA + " a\x7f", "line 1: a control character"},
		"NEL":              {hashA + " a\u0085b", "line 1: a control character"},
		"in a comment":     {hashA + " # \x07", "line 1: a control character"},
		"form feed":        {hashA + "\f", "line 1: a control character"},
		"Latin-1":          {hashA + " # B\xfcro", "line 1: not UTF-8"},
		"UTF-16":           {"\xff\xfe#\x00", "line 1: UTF-16, as PowerShell"},
		"two marks":        {"\ufeff\ufeff" + hashA, `line 1: the hash has a byte order mark in front of it`},
		"no-break space":   {hashA + "\u00a0n", `line 1: the hash has "\u00a0n" behind it`},
		"endless line":     {hashA + "\n" + strings.Repeat("x", 300_000), "line 2: 300000 characters instead of"},
		"endless blanks":   {strings.Repeat("\n", 300_000) + " x", "line 300001: 1 characters instead of"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.list, ekhashes.Options{})
			checkRefused(t, s, err, test.want)
		})
	}
}

func checkRefused(t *testing.T, s *ekhashes.Document, err error, want string) {
	t.Helper()
	format, ok := errors.AsType[*list.FormatError](err)
	if s != nil || !ok || !strings.HasPrefix(err.Error(), want) {
		t.Fatalf("list %v, %T: %v\nwant %s", s != nil, err, err, want)
	}
	if len(err.Error()) > 500 || format.Error() != err.Error() {
		t.Errorf("%d bytes for a log: %q", len(err.Error()), format)
	}
}

// TestAllowEmpty: only a list that is allowed to be empty, or says that it is, is
// empty. Otherwise a truncated file cuts off a fleet.
func TestAllowEmpty(t *testing.T) {
	for _, list := range []string{"", "\n", "# none", `{"keys": []}`} {
		s, err := parse(t, list, ekhashes.Options{AllowEmpty: true})
		if err != nil || s.Len() != 0 {
			t.Fatalf("%q: %v", list, err)
		}
		if s.Verdict(sources.EKHash{}).Listed {
			t.Errorf("%q: lists somebody", list)
		}
	}
	if s, err := parse(t, `{"keys": []}`, ekhashes.Options{}); err != nil || s.Len() != 0 {
		t.Error(err)
	}
}

// TestTextCut cuts a text everywhere. What a text has lost at the end of a line
// cannot be seen; whatever else is missing must be, and no entry may turn into
// another.
func TestTextCut(t *testing.T) {
	list := "# c\r\n" + hashA + " us-east-17 rack:12\r\n\n" + hashB + "\n" + hashC + " -\n"
	for n := range len(list) {
		s, err := parse(t, list[:n], ekhashes.Options{})
		last := list[strings.LastIndexByte(list[:n], '\n')+1 : n]
		word := len(strings.Fields(last + " x")[0])
		whole := last == "" || last == "\r" || strings.HasPrefix(last, "#") || word >= 64
		if n <= len("# c\r\n") {
			whole = false // nothing is listed yet
		}
		if whole != (err == nil) {
			t.Errorf("%q: %v", list[:n], err)
		}
		if err != nil {
			continue
		}
		for hash := range entries(s) {
			if hash != hashA && hash != hashB && hash != hashC {
				t.Errorf("%q: lists %s", list[:n], hash)
			}
		}
	}
}
