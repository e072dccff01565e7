package examples_test

import (
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const picture = "docs/sources-rules-outcome.svg"

// A kind of source that is added or renamed is so in the picture, too, and so are the keys of
// rules, the outcomes and their codes. A browser shows nothing of a picture that is not
// well-formed.
func TestPictureHasTheRealNames(t *testing.T) {
	shown, names := textsOf(t)
	want := namedIn(t, validate(t, "server", `source "unknown_kind" "a" {}`))
	for _, row := range documented(t, "outcomes") {
		outcome, code := spans(row[0])[0], spans(row[1])
		if !slices.Contains([]string{"admitted", "unavailable", "refused"}, outcome) {
			continue
		}
		want = append(want, outcome)
		for _, name := range code {
			if !strings.Contains(shown, name+":") {
				t.Errorf("the picture does not have the code %s of %s", name, outcome)
			}
		}
	}
	for _, key := range namedIn(t, validate(t, "server", `allow "a" { unknown_key = 1 }`)) {
		if !strings.Contains(shown, key+" = ") {
			t.Errorf("the picture does not have the key %s of a rule", key)
		}
	}
	want = append(want, "allow", "deny", "enforce = false")
	slices.Sort(want)
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("the picture names %q, there are %q", names, want)
	}
}

// textsOf returns all text of the picture, and apart from it what it shows as a name.
func textsOf(t *testing.T) (all string, names []string) {
	t.Helper()
	class := ""
	for d := xml.NewDecoder(strings.NewReader(read(t, picture))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all, names
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			class = ""
			for _, a := range token.Attr {
				if a.Name.Local == "class" {
					class = a.Value
				}
			}
		case xml.EndElement:
			class = ""
		case xml.CharData:
			all += string(token) + "\n"
			if class == "code" {
				names = append(names, string(token))
			}
		}
	}
}

// Who cannot see the picture reads what it shows.
func TestPictureHasAText(t *testing.T) {
	image := regexp.MustCompile(`!\[([^\]]*)\]\(([^)]*)\)`)
	found := 0
	for _, p := range pages(t) {
		for _, m := range image.FindAllStringSubmatch(p.prose, -1) {
			if strings.HasSuffix(m[2], "sources-rules-outcome.svg") {
				found++
			}
			if len(m[1]) < 40 {
				t.Errorf("%s: the picture %s has the text %q", p.file, m[2], m[1])
			}
		}
	}
	if found != 2 {
		t.Errorf("found the picture %d times, want the README and the server's page", found)
	}
}
