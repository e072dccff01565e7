package config

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// node is a value in a configuration, in HCL or in JSON.
type node struct {
	kind nodeKind
	text string // of a string; of a number, as it was written
	flag bool   // of a boolean

	// items are the items of an object, in order. Several items may have one key.
	items []item
	// elems are the elements of a list.
	elems []*node
	// folded is true for an object that was written as one more key of its
	// parent: `a "b" { … }` for `a { b { … } }`.
	folded bool
}

// item is one key of an object with its value.
type item struct {
	key  string
	line int // of the key
	val  *node
}

type nodeKind int

const (
	null nodeKind = iota
	object
	list
	text
	number
	boolean
)

// String describes a node in messages.
func (n *node) String() string {
	switch n.kind {
	case object:
		return "a block"
	case list:
		return "a list"
	case text:
		return "the string " + strconv.Quote(shorten(n.text))
	case number:
		return "the number " + printable(n.text)
	case boolean:
		return strconv.FormatBool(n.flag)
	default:
		return "null"
	}
}

// shorten makes a value safe to show: short, and without the password if it is a URL.
func shorten(s string) string {
	const most = 80
	if strings.Contains(s, "://") {
		s = fetch.Shown(s)
	}
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// blocks returns the objects among the values of a key. Blocks may be written one by one or in lists at any depth,
// with the same meaning.
func (ps *problems) blocks(path string, values []*node, example string) []*node {
	var all []*node
	for _, v := range values {
		switch v.kind {
		case object:
			all = append(all, v)
		case list:
			all = append(all, ps.blocks(path, v.elems, example)...)
		default:
			ps.add(path, "is %s, but must be a block: write %s", v, example)
		}
	}
	return all
}

// isBlocks reports whether a value is a block or a list of blocks.
func (n *node) isBlocks() bool {
	isNot := func(e *node) bool { return !e.isBlocks() }
	return n.kind == object || n.kind == list && !slices.ContainsFunc(n.elems, isNot)
}

// labelled are all values of one label.
type labelled struct {
	label  string
	values []*node
}

// labels returns the items of all objects by label, sorted.
func labels(objects []*node) []labelled {
	byLabel := map[string][]*node{}
	for _, o := range objects {
		for _, it := range o.items {
			byLabel[it.key] = append(byLabel[it.key], it.val)
		}
	}
	all := make([]labelled, 0, len(byLabel))
	for label, values := range byLabel {
		all = append(all, labelled{label, values})
	}
	slices.SortFunc(all, func(a, b labelled) int {
		if a.label < b.label {
			return -1
		}
		return 1
	})
	return all
}
