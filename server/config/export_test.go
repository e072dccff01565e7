package config

import (
	"errors"
	"io/fs"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// StatSlots is how many questions to file systems may be open.
const StatSlots = statSlots

// NewLoaderWith returns a Loader that asks stat.
func NewLoaderWith(stat func(string) (fs.FileInfo, error)) *Loader {
	l := NewLoader()
	l.stat = stat
	return l
}

// KindExamples returns the example of each kind of source.
func KindExamples() map[string]string {
	m := map[string]string{}
	for _, k := range kinds() {
		m[k.name] = k.example
	}
	return m
}

// Extra is the Config of a kind of source that only tests have.
type Extra struct{ Path, Mode string }

// ParseWithExtra is Parse if there is one more kind of source, the first of all by its
// name, "aaa".
func ParseWithExtra(text string) (*Config, error) {
	in := fromSPIRE(text, "example.org")
	in.kinds = append(in.kinds, kind{
		name:    "aaa",
		example: `source "aaa" "x" { path = "/x" }`,
		read: reader(newExtra, func(c *Extra, _ spire) []key {
			return []key{folder("path", &c.Path).like(`"/x"`), plain("mode", &c.Mode)}
		}),
		gives:  []given{{agentpath.Name, "mode"}},
		denies: need{"mode", "write a mode"},
	})
	return in.parsed()
}

func newExtra(c Extra) (sources.Source, error) {
	switch {
	case c.Path == "":
		return nil, sources.BadField("path", "is missing")
	case c.Mode == "other":
		return nil, errors.Join(sources.BadField("mode", "must be %q", "one"), sources.BadField("secret", "is bad"),
			errors.New("it is the wrong day"))
	}
	return struct{ sources.Source }{}, nil // nobody asks it
}
