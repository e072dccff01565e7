package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// A new kind of source is one entry in the table: what there was before means the same,
// and errors advise the same, wherever its name stands in the alphabet.
func TestOneMoreKind(t *testing.T) {
	const extra = `source "aaa" "x" { path = "/x" mode = "one" }` + "\n"
	for _, text := range []string{factory, both + `allow "x" { all = ["factory", "vendors"] }`, `hash_path = "/x"`, `ca_path = "/x"`} {
		c, err := config.ParseWithExtra(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if d := diff(mustParse(t, text), c); d != "" {
			t.Errorf("%s (-before +after):\n%s", text, d)
		}
	}
	for _, text := range []string{``, factory + `hash_path = "/x"`, factory + `ca_path = "/x"`, `source "hash_dir" {}`} {
		_, before := config.Parse(text, trustDomain)
		_, after := config.ParseWithExtra(text)
		if before == nil || after == nil || before.Error() != after.Error() {
			t.Errorf("%s\n before %v\n after  %v", text, before, after)
		}
	}
	c, err := config.ParseWithExtra(extra)
	if err != nil || len(c.Members) != 1 || c.Members[0].Kind != "aaa" || c.Members[0].Config != (config.Extra{Path: "/x", Mode: "one"}) {
		t.Errorf("%+v, %v", c, err)
	}
}

// A constructor's error about a field is reported at the key that has set the field, with what is
// there and what to write. Any other error of a constructor is reported at the source.
func TestWhatAConstructorSays(t *testing.T) {
	const name = `agent_path_template = "/tpm/{{ .Name }}" `
	const deny = `allow "a" { any = ["factory"] } deny "d" { any = ["x"] }`
	for _, tt := range []struct{ text, want string }{
		{`source "zzz" "x" {}`, `source "zzz": unknown kind; choose from ` + strings.Join(kindsWithExtra(), ", ")},
		{`source "aaa" {}`, `source "aaa": has no name: write source "aaa" "x" { path = "/x" }`},
		{`source "aaa" "x" {}`, `source "aaa" "x": path: is missing: write path = "/x"`},
		{`source "aaa" "x" { path = 5 }`, `source "aaa" "x": path: is the number 5, but must be a string: write path = "5"`},
		{
			`source "aaa" "x" { path = "/x" mode = "other" }`,
			`source "aaa" "x": it is the wrong day; source "aaa" "x": secret is bad; ` +
				`source "aaa" "x": mode: is the string "other", but must be "one"`,
		},
		{`source "aaa" "x" { path = "/x" } ` + name, `agent_path_template: uses .Name, which no source`},
		{factory + `source "aaa" "x" { path = "/x" } ` + deny, `source "aaa" "x": mode: write a mode`},
	} {
		_, err := config.ParseWithExtra(tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
}

// kindsWithExtra are the names of all kinds and of the extra one, sorted.
func kindsWithExtra() []string {
	names := []string{"aaa"}
	for name := range config.KindExamples() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
