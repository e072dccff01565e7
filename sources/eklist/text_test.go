package eklist_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// digits returns the hash that is made of one hex digit.
func digits(digit string) string { return strings.Repeat(digit, 64) }

var hashA, hashB, hashC = digits("a"), digits("b"), digits("c")

// parse reads a list in several ways, which must come to the same.
func parse(t *testing.T, list string, opts eklist.Options) (*eklist.Snapshot, error) {
	t.Helper()
	s, err := eklist.Parse(strings.NewReader(list), opts)
	for name, r := range map[string]io.Reader{
		"byte by byte":    iotest.OneByteReader(strings.NewReader(list)),
		"end with data":   iotest.DataErrReader(strings.NewReader(list)),
		"with a bad size": strings.NewReader(list),
	} {
		if name == "with a bad size" {
			opts.Size = 70 * 1000
		}
		s2, err2 := eklist.Parse(r, opts)
		// What is not JSON is quoted as far as it was read.
		text, _, _ := strings.Cut(fmt.Sprint(err), "not JSON")
		if !strings.HasPrefix(fmt.Sprint(err2), text) || (err == nil) != (err2 == nil) {
			t.Fatalf("%s: %v, at once: %v", name, err2, err)
		}
		if err == nil && (!s.SameEntries(s2) || s.Header() != s2.Header()) {
			t.Fatalf("%s: another list", name)
		}
	}
	return s, err
}

// entries returns a list as a map.
func entries(s *eklist.Snapshot) map[string]sources.Attributes {
	m := map[string]sources.Attributes{}
	for hash, record := range s.All() {
		m[hash.String()] = record.Attributes()
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
			s, err := parse(t, test.list, eklist.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, entries(s)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if s.Len() != len(test.want) || s.Header() != (eklist.Header{}) {
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
		"hash twice":       {"\n" + hashA + "\n# c\n" + hashB + "\n" + strings.ToUpper(hashA) + "\n", "line 5: the hash " + hashA + " for the second time, after line 2"},
		"hash three times": {hashB + "\n" + hashB + "\n" + hashA + "\n" + hashB + "\n" + hashA, "line 2: the hash " + hashB + " for the second time, after line 1"},
		"hash twice named": {hashA + " a\n" + hashA + " b", "line 2: the hash " + hashA + " for the second time, after line 1"},
		"name twice":       {"\n" + hashA + " n\n" + hashC + "\n" + hashB + " n x\n", `line 4: the name "n" for the second time, after line 2`},
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
		"UTF-16":           {"\xff\xfe#\x00", "line 1: not UTF-8"},
		"two marks":        {"\ufeff\ufeff" + hashA, `line 1: the hash has "\ufeff" in front of it`},
		"no-break space":   {hashA + "\u00a0n", `line 1: the hash has "\u00a0n" behind it`},
		"endless line":     {hashA + "\n" + strings.Repeat("x", 300_000), "line 2: a line of more than 262144 bytes"},
		"endless blanks":   {strings.Repeat("\n", 300_000) + hashA, "byte 0: begins with more than 262144 blanks"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.list, eklist.Options{})
			checkRefused(t, s, err, test.want)
		})
	}
}

func checkRefused(t *testing.T, s *eklist.Snapshot, err error, want string) {
	t.Helper()
	format, ok := errors.AsType[*eklist.FormatError](err)
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
		s, err := parse(t, list, eklist.Options{AllowEmpty: true})
		if err != nil || s.Len() != 0 {
			t.Fatalf("%q: %v", list, err)
		}
		v, err := s.Verdict(evidence(hashA))
		if v.Listed || err != nil {
			t.Errorf("%q: listed %v, %v", list, v.Listed, err)
		}
	}
	if s, err := parse(t, `{"keys": []}`, eklist.Options{}); err != nil || s.Len() != 0 {
		t.Error(err)
	}
}

// TestMaxBytes: a body without an end ends at the limit, whatever it holds.
func TestMaxBytes(t *testing.T) {
	for name, list := range map[string]string{
		"text": hashA + "\n" + hashB + "\n",
		"JSON": `{"keys": ["` + hashA + `", "` + hashB + `"]}`,
		"tail": `{"keys": ["` + hashA + `"]}` + strings.Repeat(" ", 100),
	} {
		n := int64(len(list))
		if _, err := parse(t, list, eklist.Options{MaxBytes: n, Size: n}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for limit := int64(1); limit < n; limit++ {
			if s, err := parse(t, list, eklist.Options{MaxBytes: limit, Size: 1 << 40}); s != nil || !errors.Is(err, eklist.ErrTooLong) {
				t.Fatalf("%s, limit %d: %v", name, limit, err)
			}
		}
	}
	for _, limit := range []int64{-1, eklist.MaxBytes + 1} {
		if _, err := eklist.Parse(strings.NewReader(hashA), eklist.Options{MaxBytes: limit}); err == nil {
			t.Errorf("limit %d", limit)
		}
	}
	for _, b := range []string{"\n", "x", hashA + "\n"} {
		counted := &endless{of: b}
		if _, err := eklist.Parse(counted, eklist.Options{MaxBytes: 1 << 20}); err == nil {
			t.Errorf("%q for ever is a list", b)
		}
		if counted.n > 2<<20 {
			t.Errorf("%q: read %d bytes", b, counted.n)
		}
	}
}

// endless reads the same for ever.
type endless struct {
	of string
	n  int
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.of[(e.n+i)%len(e.of)]
	}
	e.n += len(p)
	return len(p), nil
}

// TestReadFails: what was read before a connection broke is no list, even where
// it would be one.
func TestReadFails(t *testing.T) {
	broken := errors.New("connection reset")
	for _, list := range []string{"", "\n", hashA, hashA + "\n", hashA + " n\n#", `{"keys": [`, `{"keys": []`, `{"keys": []}`, `{"ke`, "{", `{"keys": ["` + hashA} {
		r := io.MultiReader(strings.NewReader(list), iotest.ErrReader(broken))
		if s, err := eklist.Parse(r, eklist.Options{AllowEmpty: true}); s != nil || !errors.Is(err, broken) {
			t.Errorf("%q: %v", list, err)
		}
	}
	if _, err := eklist.Parse(stuck{}, eklist.Options{}); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

// stuck is a reader that reads nothing and does not fail.
type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestTextCut cuts a text everywhere. What a text has lost at the end of a line
// cannot be seen; whatever else is missing must be, and no entry may turn into
// another.
func TestTextCut(t *testing.T) {
	list := "# c\r\n" + hashA + " us-east-17 rack:12\r\n\n" + hashB + "\n" + hashC + " -\n"
	for n := range len(list) {
		s, err := parse(t, list[:n], eklist.Options{})
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
