package config

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// node is a value in a configuration, whichever syntax it was written in.
type node struct {
	kind nodeKind
	text string // of a string; of a number, as it was written
	flag bool   // of a boolean

	// items are those of an object, in order; one key may come several times.
	items []item
	// elems are the elements of a list.
	elems []*node
	// folded is true for an object that was written as one more key of its
	// parent: `a "b" { … }` for `a { b { … } }`.
	folded bool
}

// item is one key of an object with its value.
type item struct {
	key string
	val *node
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

// String says what a node is, for a person.
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

// shorten returns a value as it may be shown: short, and if it is a URL without a
// password.
func shorten(s string) string {
	const most = 80
	if strings.Contains(s, "://") {
		s = certfetch.Shown(s)
	}
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// blocks returns the objects that a key's values stand for. A block may come
// once, several times, or in lists, however deep: all mean the same.
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

// isBlocks says whether a value is a block or a list of blocks.
func (n *node) isBlocks() bool {
	isNot := func(e *node) bool { return !e.isBlocks() }
	return n.kind == object || n.kind == list && !slices.ContainsFunc(n.elems, isNot)
}

// labelled are the values that one label has been given.
type labelled struct {
	label  string
	values []*node
}

// labels sorts the items of objects by label.
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
