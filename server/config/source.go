package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// definition is a source as it is configured.
type definition struct {
	kind   kind
	name   string
	path   string // of keys
	broken bool   // the block has a mistake

	config any
	source sources.Source // it has opened nothing

	noAttributes bool
	files        []file
	// fields are the fields of an agent's ID that the source can give.
	fields []agentpath.Field
	// unmet is the key that the source must have if a deny rule names it, and that its block does not have.
	unmet need
}

// warnings returns the warnings of the source's Config, if it has that method.
func (d *definition) warnings() []sources.FieldError {
	if c, ok := d.config.(interface{ Warnings() []sources.FieldError }); ok {
		return c.Warnings()
	}
	return nil
}

// file is a path that must exist.
type file struct {
	source string
	at     string // the path of keys
	path   string
	dir    bool // must be a folder
	// regular is true if it must be a regular file.
	regular bool
	// secret is true if other users should not be able to read it.
	secret bool
	// cache is the path of a cache, if path is its folder. The cache need not exist.
	cache string
}

// A Path is a file or a folder that a configuration names.
type Path struct {
	// Source is the name of the source that it belongs to.
	Source string
	// At is the path of keys that names it.
	At string
	// Path is as it is written. A relative one is relative to the working directory of SPIRE.
	Path string
	// Folder is true if it must be a folder. Regular is true if it must be a regular file. If both
	// are false, it may be either.
	Folder, Regular bool
	// Secret is true if other users should not be able to read it.
	Secret bool
	// Cache is true if it is a file that the plugin writes, in a folder that must exist.
	Cache bool
}

// Paths returns all files and folders that the configuration names, in its order of keys.
func (c *Config) Paths() []Path {
	all := make([]Path, len(c.files))
	for i, f := range c.files {
		all[i] = Path{f.source, f.at, f.path, f.dir, f.regular, f.secret, false}
		if f.cache != "" {
			all[i] = Path{Source: f.source, At: f.at, Path: f.cache, Regular: true, Cache: true}
		}
	}
	return all
}

// Place returns the path of keys of a source.
func (c *Config) Place(source string) string { return c.places[source] }

// maxSources is how many sources there may be.
const maxSources = 256

// declared has the names of all sources in the configuration, including those with a
// mistake, each with its path of keys.
type declared map[string]string

func (d declared) names() []string { return slices.Sorted(maps.Keys(d)) }

// aBlock shows in messages how a source is written.
const aBlock = `source "<kind>" "<name>" { … }`

// decodeSources reads all source blocks and returns those of a known kind, sorted by name.
func decodeSources(ps *problems, values []*node, kinds []kind, of spire) (all []definition, seen declared) {
	seen = declared{}
	total := 0
	for _, byKind := range labels(ps.blocks("source", values, aBlock)) {
		kindPath, example := fmt.Sprintf("source %q", shorten(byKind.label)), aBlock
		k := kindNamed(kinds, byKind.label)
		if k != nil {
			example = k.example
		} else {
			ps.add(kindPath, "unknown kind%s", ps.suggest(byKind.label, namesOf(kinds)))
		}
		for _, n := range namedBlocks(ps, kindPath, byKind.values, example) {
			total++
			if other, ok := seen[n.name]; ok {
				ps.add(n.path, "has the same name as %s: names must be unique across kinds", other)
			}
			seen[n.name] = n.path
			if k != nil && total <= maxSources {
				all = append(all, decodeSource(newBody(n.path, ps, n.parts...), *k, n.name, of))
			}
		}
	}
	if total > maxSources {
		ps.add("source", "there are %d sources; at most %d are allowed", total, maxSources)
	}
	slices.SortFunc(all, func(a, b definition) int { return strings.Compare(a.name, b.name) })
	checkCaches(ps, all)
	return all, seen
}

// decodeSource reads one block.
func decodeSource(b *body, k kind, name string, of spire) definition {
	d := definition{kind: k, name: name, path: b.path, noAttributes: !b.boolean("attributes", true)}
	d.config, d.source = k.read(b, of)
	b.finish()
	d.broken, d.files = b.broken, b.files
	for _, g := range k.gives {
		if !d.noAttributes && (g.key == "" || b.has(g.key)) {
			d.fields = append(d.fields, g.field)
		}
	}
	if k.denies.key != "" && !b.has(k.denies.key) {
		d.unmet = k.denies
	}
	return d
}

// kindNamed returns the kind with a name, or nil.
func kindNamed(kinds []kind, name string) *kind {
	if i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name }); i >= 0 {
		return &kinds[i]
	}
	return nil
}

func namesOf(kinds []kind) []string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = k.name
	}
	slices.Sort(names)
	return names
}

// namedBlock is a block with its name.
type namedBlock struct {
	name, path string
	// parts are the objects with the content of the block: one, or several that were folded
	// into further keys.
	parts []*node
}

// namedBlocks reads blocks of the form `"<name>" { … }`. It returns one block for each name.
func namedBlocks(ps *problems, path string, values []*node, example string) []namedBlock {
	var all []namedBlock
	objects := ps.blocks(path, values, example)
	for _, o := range objects {
		if len(o.items) == 0 {
			ps.add(path, "has no name: write %s", example)
		}
	}
	for _, l := range labels(objects) {
		if slices.ContainsFunc(l.values, func(n *node) bool { return !n.isBlocks() }) {
			ps.add(path, "has no name before %s: write %s", printable(l.label), example)
			continue
		}
		blockPath := fmt.Sprintf("%s %q", path, shorten(l.label))
		if !validName(l.label) {
			ps.add(blockPath, "%s", nameRule)
		}
		parts := ps.blocks(blockPath, l.values, example)
		if len(parts) > 1 && slices.ContainsFunc(parts, func(n *node) bool { return !n.folded }) {
			ps.add(blockPath, "is defined %d times: keep one", len(parts))
			parts = parts[:1]
		}
		all = append(all, namedBlock{l.label, blockPath, parts})
	}
	return all
}
