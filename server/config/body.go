package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// body reads the keys of one block. A key that no method was asked for is unknown: finish reports it.
type body struct {
	path     string
	values   map[string][]*node
	asked    []string
	problems *problems
	// broken is true if the block has a problem. wrong has the keys with a problem.
	broken bool
	wrong  map[string]bool

	// named maps keys to the names that messages use, if those differ from the keys.
	named map[string]string
	// examples are values of keys, as an operator would write them.
	examples map[string]string
	// files are the files that the keys name.
	files []file
}

func newBody(path string, ps *problems, parts ...*node) *body {
	b := &body{
		path: path, values: map[string][]*node{}, problems: ps,
		wrong: map[string]bool{}, examples: map[string]string{},
	}
	for _, part := range parts {
		for _, it := range part.items {
			b.values[it.key] = append(b.values[it.key], it.val)
		}
	}
	return b
}

// fail reports a problem with a key.
func (b *body) fail(key, format string, args ...any) {
	b.broken, b.wrong[key] = true, true
	b.problems.add(b.place(key), format, args...)
}

// called returns the name of a key in messages.
func (b *body) called(key string) string {
	if name, ok := b.named[key]; ok {
		return name
	}
	return key
}

// place returns the path of a key in messages.
func (b *body) place(key string) string { return under(b.path, b.called(key)) }

// all returns the values of a key, in order.
func (b *body) all(key string) []*node {
	b.asked = append(b.asked, key)
	return b.values[key]
}

// has reports whether the block has a key. It does not ask for the key.
func (b *body) has(key string) bool { return len(b.values[key]) > 0 }

// one returns the value of a key that may be set only once, or nil.
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

// text returns a string, or nothing if the block does not have the key.
func (b *body) text(key string) string { return b.string(key, false) }

// string is text that does not show the value in messages if secret is true: an operator may have written the
// secret itself in place of its path.
func (b *body) string(key string, secret bool) string {
	n := b.one(key)
	if n == nil {
		return ""
	}
	switch {
	case secret && (n.kind != text || hasControl(n.text)):
		b.fail(key, "must be a string, the path of a file, without control characters")
	case n.kind == number:
		b.fail(key, "is %s, but must be a string: write %s = %q", n, b.called(key), shorten(n.text))
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

// boolean returns a boolean, or otherwise if the block does not have the key.
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

// duration returns a duration within limits, or otherwise if there is none.
func (b *body) duration(key string, otherwise, least, most time.Duration) time.Duration {
	n := b.one(key)
	if n == nil {
		return otherwise
	}
	if n.kind != text {
		b.fail(key, "is %s, but must be a duration in quotes: write %s = %q", n, b.called(key), otherwise)
		return otherwise
	}
	d, err := time.ParseDuration(n.text)
	switch {
	case err != nil:
		b.fail(key, "is %s, but must be a duration: write %s = %q", n, b.called(key), otherwise)
		return otherwise
	case d < least || d > most:
		b.fail(key, "is %s, but must be from %s to %s", n, least, most)
		return otherwise
	}
	return d
}

// integer returns a whole number within limits, or otherwise if there is none.
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

// texts returns a list of strings, sorted; nil if the block does not have the key.
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

// textMap returns a map from names to strings, nil if the block does not have the key.
func (b *body) textMap(key, example string) map[string]string {
	values := b.all(key)
	if len(values) == 0 {
		return nil
	}
	before := len(b.problems.list)
	objects := b.problems.blocks(b.place(key), values, example)
	parts := newBody(b.place(key), b.problems, objects...)
	m := map[string]string{}
	for _, l := range labels(objects) {
		if s := parts.text(l.label); s != "" {
			m[l.label] = s
		}
	}
	switch {
	case len(b.problems.list) > before || parts.broken:
		b.broken, b.wrong[key] = true, true
	case len(m) == 0:
		b.fail(key, "is empty: write %s", example)
	}
	return m
}

// finish reports the keys of the block that were not asked for.
func (b *body) finish() {
	slices.Sort(b.asked)
	b.asked = slices.Compact(b.asked)
	for key := range b.values {
		if !slices.Contains(b.asked, key) {
			b.fail(key, "unknown key%s", b.problems.suggest(key, b.asked))
		}
	}
}

// nameRule is the message for a name that validName refuses.
const nameRule = "is not a valid name: use 1 to 64 of a-z, 0-9, _ and -"

var namePattern = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// validName reports whether a string may name a source or a rule. Names become selectors
// and labels of metrics.
func validName(s string) bool { return namePattern.MatchString(s) }

// hasControl reports whether a string has a control character.
func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}
