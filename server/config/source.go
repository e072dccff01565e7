package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
)

// sourceKind is one kind of source. To add one, add it to sourceKinds.
type sourceKind struct {
	name string
	// decode reads the block of a source of this kind.
	decode func(*body) definition
	// example is a block, for a person.
	example string
}

// sourceKinds are all kinds of sources.
var sourceKinds = []sourceKind{
	{"ek_ca", decodeEKCA, `source "ek_ca" "vendors" { ca_path = "/etc/tpm/cas" }`},
	{"hash_dir", decodeHashDir, `source "hash_dir" "machines" { path = "/srv/tpm/hashes" }`},
	{"hash_file", decodeHashFile, `source "hash_file" "machines" { path = "/etc/tpm/machines.txt" }`},
	{"http", decodeHTTP, `source "http" "inventory" { url = "https://allowlist.example.org/tpm.json" }`},
	{"sql", decodeSQL, `source "sql" "machines" { dialect = "postgres" dsn_path = "/etc/spire/tpm-database.dsn" }`},
}

// definition is a source as it is configured.
type definition struct {
	kind, name   string
	path         string // of keys
	noAttributes bool
	broken       bool // there is a mistake in the block

	// config is the typed configuration of the kind.
	config any
	// open makes the source; it touches nothing.
	open func() (sources.Source, error)
	// files must exist.
	files []file
	// cache is a file that the source writes, or empty.
	cache string
	// warnings are what a person should know, though it is no mistake.
	warnings []Problem
	// gives are the fields of an agent's path that the source can give.
	gives []agentpath.Field
	// byVendor is set where the source knows makers of TPMs and not TPMs.
	byVendor bool
	// notInDeny says what a source must have for use in a deny rule: the key,
	// and what is to be done about it. Empty where it may be used.
	notInDeny, because string
}

// file is a path that must exist.
type file struct {
	at   string // the path of keys
	path string
	dir  bool // must be a folder
	// regular says that it must be a regular file.
	regular bool
	// secret says that it is nobody else's to read.
	secret bool
	// cache is the file of a cache in the folder at path, or empty. It need not exist.
	cache string
}

// besideFile is a file that belongs to a source: a certificate, a key, a token.
func besideFile(block, key, path string) file {
	return file{at: under(block, key), path: path, regular: true, secret: secretPath(key)}
}

func decodeHashDir(b *body) definition {
	cfg := hashdir.Config{
		Path:   b.required("path", "/srv/tpm/hashes"),
		Marker: b.text("marker"),
	}
	if cfg.Marker != "" {
		if err := hashdir.CheckMarker(cfg.Marker); err != nil {
			b.fail("marker", "%v", err)
		}
	}
	return hashDir(b, cfg, "path")
}

func hashDir(b *body, cfg hashdir.Config, key string) definition {
	d := definition{
		config: cfg,
		open:   func() (sources.Source, error) { return hashdir.New(cfg) },
		gives:  []agentpath.Field{agentpath.Name},
	}
	if cfg.Path != "" {
		d.files = append(d.files, file{at: under(b.path, key), path: cfg.Path, dir: true})
	}
	if cfg.Marker == "" {
		d.notInDeny = "marker"
		d.because = "a deny rule uses this source, so an unmounted directory must not pass for an empty one: " +
			`create a file in it and write marker = "<its name>"`
	}
	return d
}

// The intervals at which files may be looked at for changes.
const (
	defaultPoll = 30 * time.Second
	leastPoll   = time.Second
	mostPoll    = 24 * time.Hour
)

// maxSources is how many sources there may be.
const maxSources = 256

// declared are the names of all sources that are written, those with a mistake
// among them, each with its path of keys.
type declared map[string]string

func (d declared) names() []string { return slices.Sorted(maps.Keys(d)) }

// decodeSources reads all source blocks and returns those of a known kind,
// sorted by name.
func decodeSources(ps *problems, values []*node) (all []definition, seen declared) {
	const example = `source "<kind>" "<name>" { … }`
	seen = declared{}
	total := 0
	for _, byKind := range labels(ps.blocks("source", values, example)) {
		kindPath := fmt.Sprintf("source %q", shorten(byKind.label))
		i := slices.IndexFunc(sourceKinds, func(k sourceKind) bool { return k.name == byKind.label })
		if i < 0 {
			kinds := kindNames()
			ps.add(kindPath, "unknown kind%s", ps.suggest(byKind.label, kinds))
		}
		for _, n := range namedBlocks(ps, kindPath, byKind.values, exampleOf(i)) {
			total++
			if other, ok := seen[n.name]; ok {
				ps.add(n.path, "has the same name as %s: names must be unique across kinds", other)
			}
			seen[n.name] = n.path
			if i < 0 || total > maxSources {
				continue
			}
			all = append(all, decodeSource(ps, sourceKinds[i], n))
		}
	}
	if total > maxSources {
		ps.add("source", "there are %d sources; at most %d are allowed", total, maxSources)
	}
	slices.SortFunc(all, func(a, b definition) int { return strings.Compare(a.name, b.name) })
	checkCaches(ps, all)
	return all, seen
}

func decodeSource(ps *problems, k sourceKind, n namedBlock) definition {
	b := newBody(n.path, ps, n.parts...)
	noAttributes := !b.boolean("attributes", true)
	d := k.decode(b)
	b.finish()
	d.kind, d.name, d.path = k.name, n.name, n.path
	d.noAttributes, d.broken = noAttributes, b.broken
	if noAttributes {
		d.gives = nil
	}
	return d
}

func kindNames() []string {
	names := make([]string, len(sourceKinds))
	for i, k := range sourceKinds {
		names[i] = k.name
	}
	return names
}

func exampleOf(i int) string {
	if i < 0 {
		i = 0
	}
	return sourceKinds[i].example
}

// namedBlock is a block with its name.
type namedBlock struct {
	name, path string
	// parts are what it is made of: one object, or those of its objects that
	// were folded into further keys.
	parts []*node
}

// namedBlocks reads `"<name>" { … }`. It returns one block a name.
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
