package hashdir

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

func quoted(n int, format string) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf(format, i)
	}
	return `["` + strings.Join(values, `", "`) + `"]`
}

// TestParseEntry checks what an entry may say, and stops values that would forge a line in a
// log, flood the selectors, or be applied in part.
func TestParseEntry(t *testing.T) {
	long := strings.Repeat("é", 125) // 250 bytes
	for _, test := range []struct {
		name, content string
		want          sources.Attributes
		err           string
	}{
		{
			name: "name and labels", content: `{"name": "us-east-17", "labels": ["rack:12", "env:prod"]}`,
			want: sources.Attributes{Name: "us-east-17", Labels: []string{"rack:12", "env:prod"}},
		},
		{name: "name", content: "\r\n\t {\"name\": \"a\"}\n", want: sources.Attributes{Name: "a"}},
		{name: "labels", content: `{"labels": ["a"]}`, want: sources.Attributes{Labels: []string{"a"}}},
		{name: "neither", content: `{}`},
		{name: "null", content: `{"name": null, "labels": null}`},
		{
			name: "unknown fields", content: `{"owner": {"name": "b", "n": [1]}, "Name": "c", "name": "a"}`,
			want: sources.Attributes{Name: "a"},
		},
		{
			name: "a label twice", content: `{"labels": ["a", "b", "a"]}`,
			want: sources.Attributes{Labels: []string{"a", "b"}},
		},
		{name: "byte order mark", content: "\ufeff{\"name\": \"a\"}", want: sources.Attributes{Name: "a"}},
		{
			name: "padded", content: `{"name": "host-a  ", "labels": [" l", "l"]}`,
			want: sources.Attributes{Name: "host-a", Labels: []string{"l"}},
		},
		{name: "longest name", content: `{"name": "` + long + `"}`, want: sources.Attributes{Name: long}},
		{name: "another source's fields", content: `{"CAs": ["infineon"], "Certificate": {"Serial": "1"}}`},

		{name: "empty"},
		{name: "blank", content: " \n"},
		{name: "text", content: "us-east-17 rack:12\n"},
		{name: "PEM", content: "-----BEGIN PUBLIC KEY-----\n"},
		{name: "array", content: `["a"]`},
		{name: "string", content: `"a"`},
		{name: "binary", content: "\x00\xff{"},
		{name: "too long", content: `{"name": "a"}` + strings.Repeat(" ", maxContent)},

		{name: "cut", content: `{"name": "us-east-17", "labels": ["ra`, err: "content: "},
		{name: "cut at once", content: `{`, err: "content: "},
		{name: "two objects", content: `{"name": "a"} {"name": "b"}`, err: "content: "},
		{name: "field twice", content: `{"name": "a", "name": "b"}`, err: "duplicate"},
		{name: "field twice, escaped", content: `{"name": "a", "n\u0061me": "b"}`, err: "duplicate"},
		{name: "not UTF-8", content: "{\"name\": \"\xff\"}", err: "UTF-8"},
		{name: "name is a number", content: `{"name": 17}`, err: "name"},
		{name: "labels are a string", content: `{"labels": "a"}`, err: "labels"},
		{name: "label is an object", content: `{"labels": [{}]}`, err: "labels"},
		{name: "deep", content: `{"x": ` + strings.Repeat("[", 20000), err: "content: "},
		{name: "name too long", content: `{"name": "` + long + `y"}`, err: "content: a name of 251 bytes, more than 250"},
		{name: "name with a line feed", content: `{"name": "a\nb"}`, err: "content: a name with a control character"},
		{name: "name with NEL", content: `{"name": "a\u0085b"}`, err: "content: a name with a control character"},
		{name: "label empty", content: `{"labels": ["a", ""]}`, err: "content: label 2: an empty label"},
		{name: "label null", content: `{"labels": [null]}`, err: "content: label 1: an empty label"},
		{name: "label with a zero", content: `{"labels": ["\u0000"]}`, err: "content: label 1: a label with a control"},
		{name: "label too long", content: `{"labels": ["` + long + `y"]}`, err: "content: label 1: a label of 251 bytes, more than 249"},
		{name: "65 labels", content: `{"labels": ` + quoted(65, "l%d") + `}`, err: "content: 65 labels, more than 64"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseEntry([]byte(test.content))
			if (err != nil) != (test.err != "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Fatalf("says %v, want %q", err, test.err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("attributes (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("64 labels", func(t *testing.T) {
		got, err := parseEntry([]byte(`{"labels": ` + quoted(64, "l%d") + `}`))
		if err != nil || len(got.Labels) != 64 {
			t.Errorf("says %d labels, %v", len(got.Labels), err)
		}
	})
}

// FuzzEntry stops content that causes a panic or gets values past the limits.
func FuzzEntry(f *testing.F) {
	for _, seed := range []string{`{"name": "a", "labels": ["b", "b"]}`, `{`, ``, `{"labels": {}}`, "\x00", `{"a":[[[[`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		attrs, err := parseEntry(content)
		if err != nil && (attrs.Name != "" || attrs.Labels != nil) {
			t.Errorf("%+v beside an error", attrs)
		}
		if len(attrs.Labels) > 64 || attrs.CAs != nil || attrs.Certificate != nil {
			t.Errorf("%+v", attrs)
		}
		for _, s := range append(attrs.Labels, attrs.Name) {
			if len(s) > sources.MaxName || !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\n\r\x1b\x7f") {
				t.Errorf("value %q", s)
			}
		}
	})
}
