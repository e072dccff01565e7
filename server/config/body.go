package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// body reads the keys of one block. The keys that are asked for are those that
// there are: finish reports all others.
type body struct {
	path     string
	values   map[string][]*node
	asked    []string
	problems *problems
	// broken is set by the first problem in this block.
	broken bool
}

func newBody(path string, ps *problems, parts ...*node) *body {
	b := &body{path: path, values: map[string][]*node{}, problems: ps}
	for _, part := range parts {
		for _, it := range part.items {
			b.values[it.key] = append(b.values[it.key], it.val)
		}
	}
	return b
}

// fail reports a problem with a key.
func (b *body) fail(key, format string, args ...any) {
	b.broken = true
	b.problems.add(under(b.path, key), format, args...)
}

// all returns the values of a key, in order.
func (b *body) all(key string) []*node {
	b.asked = append(b.asked, key)
	return b.values[key]
}

// has says whether a key is there. It does not ask for it.
func (b *body) has(key string) bool { return len(b.values[key]) > 0 }

// one returns the value of a key that may be there once, or nil.
func (b *body) one(key string) *node {
	values := b.all(key)
	if len(values) > 1 {
		b.fail(key, "is set %d times: keep one", len(values))
	}
	if len(values) != 1 {
		return nil
	}
	if values[0].kind == null {
		b.fail(key, "is null: give it a value, or leave the key out")
		return nil
	}
	return values[0]
}

// text returns a string, or nothing where the key is not there.
func (b *body) text(key string) string {
	n := b.one(key)
	if n == nil {
		return ""
	}
	switch {
	case secretPath(key) && n.kind != text, secretPath(key) && hasControl(n.text):
		b.fail(key, "must be a string, the path of a file, without control characters")
	case n.kind == number:
		b.fail(key, "is %s, but must be a string: write %s = %q", n, key, shorten(n.text))
	case n.kind != text:
		b.fail(key, "is %s, but must be a string", n)
	case n.text == "":
		b.fail(key, "is empty: give it a value, or leave the key out")
	case hasControl(n.text):
		b.fail(key, "is %s, but must not have control characters", n)
	default:
		return n.text
	}
	return ""
}

// required returns a string that must be there.
func (b *body) required(key, example string) string {
	if !b.has(key) {
		b.asked = append(b.asked, key)
		b.fail(key, "is missing: write %s = %q", key, example)
		return ""
	}
	return b.text(key)
}

// boolean returns a boolean, or what holds where the key is not there.
func (b *body) boolean(key string, otherwise bool) bool {
	n := b.one(key)
	switch {
	case n == nil:
		return otherwise
	case n.kind != boolean:
		b.fail(key, "is %s, but must be true or false, without quotes", n)
		return otherwise
	}
	return n.flag
}

// duration returns a duration within limits, or what holds where the key is not
// there.
func (b *body) duration(key string, otherwise, least, most time.Duration) time.Duration {
	n := b.one(key)
	if n == nil {
		return otherwise
	}
	if n.kind != text {
		b.fail(key, "is %s, but must be a duration in quotes: write %s = %q", n, key, otherwise)
		return otherwise
	}
	d, err := time.ParseDuration(n.text)
	switch {
	case err != nil:
		b.fail(key, "is %s, but must be a duration: write %s = %q", n, key, otherwise)
		return otherwise
	case d < least || d > most:
		b.fail(key, "is %s, but must be from %s to %s", n, least, most)
		return otherwise
	}
	return d
}

// integer returns a whole number within limits, or what holds where the key is
// not there.
func (b *body) integer(key string, otherwise, least, most int64) int64 {
	n := b.one(key)
	if n == nil {
		return otherwise
	}
	if n.kind != number {
		b.fail(key, "is %s, but must be a number without quotes: write %s = %d", n, key, otherwise)
		return otherwise
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil || i < least || i > most {
		b.fail(key, "is %s, but must be a whole number from %d to %d", n, least, most)
		return otherwise
	}
	return i
}

// maxListed is how many entries a list of strings may have.
const maxListed = 256

// texts returns a list of strings, sorted; nil where the key is not there.
func (b *body) texts(key string) []string {
	n := b.one(key)
	if n == nil {
		return nil
	}
	if n.kind != list {
		example := `"…"`
		if n.kind == text {
			example = fmt.Sprintf("%q", shorten(n.text))
		}
		b.fail(key, "is %s, but must be a list: write %s = [%s]", n, key, example)
		return nil
	}
	if len(n.elems) == 0 {
		b.fail(key, "is empty: add an entry, or leave the key out")
	}
	if len(n.elems) > maxListed {
		b.fail(key, "has %d entries; at most %d are allowed", len(n.elems), maxListed)
		return nil
	}
	all := make([]string, 0, len(n.elems))
	for _, e := range n.elems {
		switch {
		case e.kind != text:
			b.fail(key, "contains %s, but must be a list of strings", e)
		case slices.Contains(all, e.text):
			b.fail(key, "contains %q twice", shorten(e.text))
		default:
			all = append(all, e.text)
		}
	}
	slices.Sort(all)
	return all
}

// textMap returns a map from names to strings, nil where the key is not there.
func (b *body) textMap(key, example string) map[string]string {
	values := b.all(key)
	if len(values) == 0 {
		return nil
	}
	before := len(b.problems.list)
	objects := b.problems.blocks(under(b.path, key), values, example)
	b.broken = b.broken || len(b.problems.list) > before
	parts := newBody(under(b.path, key), b.problems, objects...)
	m := map[string]string{}
	for _, l := range labels(objects) {
		if !validName(l.label) {
			parts.fail(l.label, "%s", nameRule)
		}
		if s := parts.text(l.label); s != "" {
			m[l.label] = s
		}
	}
	if len(m) == 0 && !parts.broken && !b.broken {
		parts.broken = true
		b.problems.add(parts.path, "is empty: write %s", example)
	}
	b.broken = b.broken || parts.broken
	return m
}

// together reports the keys of a group that are missing where others are there.
func (b *body) together(because string, keys ...string) {
	if !slices.ContainsFunc(keys, b.has) {
		return
	}
	for _, key := range keys {
		if !b.has(key) {
			b.fail(key, "is missing: %s", because)
		}
	}
}

// finish reports the keys that nobody has asked for.
func (b *body) finish() {
	slices.Sort(b.asked)
	b.asked = slices.Compact(b.asked)
	for key := range b.values {
		if !slices.Contains(b.asked, key) {
			b.fail(key, "unknown key%s", b.problems.suggest(key, b.asked))
		}
	}
}

// nameRule says what validName wants.
const nameRule = "is not a valid name: use 1 to 64 of a-z, 0-9, _ and -"

var namePattern = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// validName says whether a string may name a source, a rule or a bundle: names
// become selectors, labels of metrics and segments of paths.
func validName(s string) bool { return namePattern.MatchString(s) }

// hasControl says whether a string has a control character.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}
