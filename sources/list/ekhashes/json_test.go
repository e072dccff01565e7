package ekhashes_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// quoted returns n strings of a JSON array.
func quoted(n int, format string) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf(format, i)
	}
	return `"` + strings.Join(values, `", "`) + `"`
}

// fields returns n fields of a JSON object.
func fields(n int) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf(`"f%d": 0`, i)
	}
	return strings.Join(values, ", ")
}

// TestJSON has what a JSON list may be. A form that is refused although it is
// documented leaves machines without a list.
func TestJSON(t *testing.T) {
	long := strings.Repeat("é", 125) // 250 bytes
	a, b := `"`+hashA+`"`, `"`+hashB+`"`
	one := map[string]sources.Attributes{hashA: {}}
	none := map[string]sources.Attributes{}
	for name, test := range map[string]struct {
		list   string
		want   map[string]sources.Attributes
		header list.Header
	}{
		"no entry":       {list: `{"keys": []}`, want: none},
		"one":            {list: `{"keys":[` + a + `]}`, want: one},
		"blanks":         {list: "\r\n\t {\n\"keys\" : [ " + a + " \r\n, " + b + " ] \t} \r\n", want: map[string]sources.Attributes{hashA: {}, hashB: {}}},
		"mark":           {list: "\ufeff" + `{"keys": [` + a + `]}`, want: one},
		"upper case":     {list: `{"keys": ["` + strings.ToUpper(hashA) + `"]}`, want: one},
		"escaped":        {list: `{"k\u0065ys": ["\u0061` + hashA[1:] + `"]}`, want: one},
		"object":         {list: `{"keys": [{"hash": ` + a + `}]}`, want: one},
		"empty values":   {list: `{"keys": [{"labels": [], "name": "", "hash": ` + a + `}]}`, want: one},
		"nulls":          {list: `{"version": null, "serial": null, "expires": null, "list": null, "keys": [{"labels": null, "name": null, "hash": ` + a + `}]}`, want: one},
		"name":           {list: `{"keys": [{"hash": ` + a + `, "name": "us east\u002d17"}]}`, want: map[string]sources.Attributes{hashA: named("us east-17")}},
		"named -":        {list: `{"keys": [{"hash": ` + a + `, "name": "-"}]}`, want: map[string]sources.Attributes{hashA: named("-")}},
		"labels":         {list: `{"keys": [{"labels": ["rack:12", "env:prod", "rack:12"], "hash": ` + a + `}]}`, want: map[string]sources.Attributes{hashA: named("", "rack:12", "env:prod")}},
		"padded":         {list: `{"keys": [{"hash": ` + a + `, "name": "host-a  ", "labels": [" l", "l\u00a0"]}]}`, want: map[string]sources.Attributes{hashA: named("host-a", "l")}},
		"name of blanks": {list: `{"keys": [{"hash": ` + a + `, "name": "  "}]}`, want: one},
		"mixed":          {list: `{"keys": [` + b + `, {"hash": ` + a + `, "name": "n", "labels": ["l"]}]}`, want: map[string]sources.Attributes{hashA: named("n", "l"), hashB: {}}},
		"longest name":   {list: `{"keys": [{"hash": ` + a + `, "name": "` + long + `"}]}`, want: map[string]sources.Attributes{hashA: named(long)}},
		"64 labels":      {list: `{"keys": [{"hash": ` + a + `, "labels": [` + quoted(64, "l%d") + `]}]}`, want: map[string]sources.Attributes{hashA: named("", strings.Fields(spaced(64))...)}},
		"unknown":        {list: `{"owner": {"keys": [1], "keys": 2}, "keys": [{"hash": ` + a + `, "site": [[{"hash": 1}]], "Name": 5}], "Keys": 1, "name": "x"}`, want: one},
		"256 fields":     {list: `{"keys": [{"hash": ` + a + `, ` + fields(255) + `}], ` + fields(255) + `}`, want: one},
		"deep unknown":   {list: `{"x": ` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `, "keys": [` + a + `]}`, want: one},
		"header behind":  {list: `{"keys": [` + a + `], "serial": 0}`, want: one, header: list.Header{HasSerial: true}},
		"header": {
			list: `{"version": 1, "serial": 18446744073709551615, "expires": "2030-01-02T03:04:05Z", "list": "fleet", "keys": [` + a + `]}`,
			want: one,
			header: list.Header{
				Serial: 1<<64 - 1, HasSerial: true, Name: "fleet",
				Expires: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.list, ekhashes.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, entries(s)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.header, s.Header()); diff != "" || s.Len() != len(test.want) {
				t.Errorf("%d entries, header (-want +got):\n%s", s.Len(), diff)
			}
		})
	}
}

// TestJSONRefused: a list that is not whole and right admits nobody, and says
// where it is wrong.
func TestJSONRefused(t *testing.T) {
	a, b := `"`+hashA+`"`, `"`+hashB+`"`
	long := strings.Repeat("x", 251)
	for name, test := range map[string]struct{ list, want string }{
		"no keys":           {`{}`, `byte 1: no field "keys"`},
		"Keys":              {`{"Keys": [` + a + `]}`, `byte 77: no field "keys"`},
		"keys null":         {`{"keys": null}`, "byte 9: a JSON null instead of an array"},
		"keys object":       {`{"keys": {}}`, "byte 9: a JSON { instead of an array"},
		"keys string":       {`{"keys": ` + a + `}`, "byte"},
		"keys twice":        {`{"keys": [` + a + `], "keys": [` + b + `]}`, "byte 79: a field that the object has twice"},
		"keys twice, coded": {`{"keys": [` + a + `], "k\u0065ys": [` + b + `]}`, "byte 79: a field that the object has twice"},
		"unknown twice":     {`{"x": 1, "x": 1, "keys": []}`, "byte 9: a field that the object has twice"},
		"behind it":         {`{"keys": []} {}`, "byte 13: something after the list"},
		"word behind it":    {`{"keys": []} x`, "byte 13: not JSON: "},
		"version 2":         {`{"version": 2, "keys": []}`, "byte 12: a version of the format other than 1"},
		"version 0":         {`{"version": 0, "keys": []}`, "byte 12: a version"},
		"version text":      {`{"version": "1", "keys": []}`, "byte 12: something other than a whole number"},
		"version 1.0":       {`{"version": 1.0, "keys": []}`, "byte 12: something other than a whole number"},
		"serial below 0":    {`{"serial": -1, "keys": []}`, "byte 11: something other than a whole number"},
		"serial too large":  {`{"serial": 18446744073709551616, "keys": []}`, "byte 11: something other than"},
		"serial endless":    {`{"serial": ` + strings.Repeat("1", 1000) + `, "keys": []}`, "byte 11: something other than"},
		"expires":           {`{"expires": "tomorrow", "keys": []}`, "byte 12: not an RFC 3339 time"},
		"expires never":     {`{"expires": "0001-01-01T00:00:00Z", "keys": []}`, "byte 12: not an RFC 3339 time"},
		"expires number":    {`{"expires": 1, "keys": []}`, "byte 12: a JSON number instead of a string"},
		"list control":      {`{"list": "a\u0000", "keys": []}`, "byte 9: a list name with a control character"},
		"list number":       {`{"list": 5, "keys": []}`, "byte 9: a JSON number instead"},
		"63 digits":         {`{"keys": [` + a + `, "` + hashB[1:] + `"]}`, "keys[1] (byte 78): 63 characters instead of a hash's 64 hex digits"},
		"no hex digit":      {`{"keys": ["` + hashA[1:] + `g"]}`, "keys[0] (byte 10): 64 characters that are not"},
		"number":            {`{"keys": [5]}`, "keys[0] (byte 10): a JSON number instead of a string"},
		"null":              {`{"keys": [null]}`, "keys[0] (byte 10): a JSON null instead"},
		"array":             {`{"keys": [[` + a + `]]}`, "keys[0] (byte 10): a JSON [ instead"},
		"no hash":           {`{"keys": [` + a + `, {"name": "n"}]}`, `keys[1] (byte 90): no field "hash"`},
		"hash null":         {`{"keys": [{"hash": null}]}`, "keys[0] (byte 19): a JSON null instead"},
		"hash field twice":  {`{"keys": [{"hash": ` + a + `, "hash": ` + b + `}]}`, "keys[0] (byte 87): a field that the object has twice"},
		"name number":       {`{"keys": [{"hash": ` + a + `, "name": 5}]}`, "keys[0] (byte 95): a JSON number instead"},
		"name control":      {`{"keys": [{"hash": ` + a + `, "name": "a\nb"}]}`, "keys[0] (byte 95): a name with a control character"},
		"name NEL":          {`{"keys": [{"hash": ` + a + `, "name": "a\u0085b"}]}`, "keys[0] (byte 95): a name with a control"},
		"raw control":       {`{"keys": [{"hash": ` + a + `, "name": "a` + "\n" + `b"}]}`, "keys[0] (byte 97): not JSON: "},
		"name too long":     {`{"keys": [{"hash": ` + a + `, "name": "` + long + `"}]}`, "keys[0] (byte 95): a name of 251 bytes, more than 250"},
		"name of 10 KB":     {`{"keys": [{"hash": ` + a + `, "name": "` + strings.Repeat("x", 10<<10) + `"}]}`, "keys[0] (byte 95): a name of 10240 bytes"},
		"name not UTF-8":    {`{"keys": [{"hash": ` + a + `, "name": "` + "\xff" + `"}]}`, "keys[0] (byte 96): not JSON: "},
		"half a surrogate":  {`{"keys": [{"hash": ` + a + `, "name": "\ud800"}]}`, "keys[0] (byte 96): not JSON: "},
		"labels string":     {`{"keys": [{"hash": ` + a + `, "labels": "l"}]}`, "keys[0] (byte"},
		"label empty":       {`{"keys": [{"hash": ` + a + `, "labels": [""]}]}`, "keys[0] (byte 98): an empty label"},
		"label of blanks":   {`{"keys": [{"hash": ` + a + `, "labels": ["  "]}]}`, "keys[0] (byte 98): an empty label"},
		"padded name twice": {`{"keys": [{"hash": ` + a + `, "name": "n"}, {"hash": ` + b + `, "name": "n "}]}`, `keys[1] (byte 110): the name "n" again, after keys[0] (byte 19)`},
		"label null":        {`{"keys": [{"hash": ` + a + `, "labels": [null]}]}`, "keys[0] (byte 98): a JSON null"},
		"label too long":    {`{"keys": [{"hash": ` + a + `, "labels": ["` + long + `"]}]}`, "keys[0] (byte 98): a label of 251 bytes, more than 249"},
		"65 labels":         {`{"keys": [{"hash": ` + a + `, "labels": [` + quoted(65, "l%d") + `]}]}`, "keys[0] (byte 536): more than 64 labels"},
		"257 fields":        {`{"keys": [], ` + fields(256) + `}`, "byte 2708: an object with more than 256 fields"},
		"hash twice":        {`{"keys": [` + a + `, ` + b + `, "` + strings.ToUpper(hashB) + `"]}`, "keys[2] (byte 146): the hash " + hashB + " again, after keys[1] (byte 78)"},
		"name twice":        {`{"keys": [{"hash": ` + a + `, "name": "n"}, {"hash": ` + b + `, "name": "\u006e"}]}`, `keys[1] (byte 110): the name "n" again, after keys[0] (byte 19)`},
		"too deep":          {`{"x": ` + strings.Repeat("[", 20_000), "byte 10005: not JSON: exceeded max depth"},
		"too deep entry":    {`{"keys": [{"x": ` + strings.Repeat("[", 20_000), "keys[0] (byte"},
		"open":              {`{`, "byte 1: the list is cut off"},
		"no comma":          {`{"keys": [` + a + ` ` + b + `]}`, "keys[0] (byte"},
		"trailing comma":    {`{"keys": [` + a + `,]}`, "keys["},
		"comment":           {`{"keys": [] /* none */}`, "byte 12: not JSON: "},
		"number as name":    {`{1: 2}`, "byte 1: not JSON: "},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.list, ekhashes.Options{AllowEmpty: true})
			checkRefused(t, s, err, test.want)
		})
	}
}

// TestJSONCut cuts a list everywhere: no part of one is a list.
func TestJSONCut(t *testing.T) {
	list := `{"version": 1, "serial": 42, "x": {"y": [true, null]}, "keys": ["` + hashA + `",
		{"hash": "` + hashB + `", "name": "us\u002deast", "labels": ["rack:12"]}], "list": "fleet"}`
	if _, err := parse(t, list, ekhashes.Options{}); err != nil {
		t.Fatal(err)
	}
	for n := range len(list) {
		if s, err := parse(t, list[:n], ekhashes.Options{}); s != nil || err == nil {
			t.Errorf("%q is a list", list[:n])
		} else if n > 0 && !strings.Contains(err.Error(), "cut off") {
			t.Errorf("%q: %v", list[:n], err)
		}
	}
}
