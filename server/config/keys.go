package config

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A key binds a key of a block to the field of a Config that it sets. If the block does not have the key, the field
// is set to the key's default, or left as it is.
type key struct {
	name string
	// example is a value as an operator would write it, or empty.
	example string
	read    func(b *body, name string)
}

// like returns the key with an example of its value. Messages suggest the example if the key is missing or its
// value is wrong.
func (k key) like(example string) key {
	k.example = example
	return k
}

// beside returns a key that has its default only if the block has another key.
func beside(other string, k key) key {
	read := k.read
	k.read = func(b *body, name string) {
		if b.has(name) || b.has(other) {
			read(b, name)
		}
	}
	return k
}

// unread is set in place of a value that could not be read, so that the constructor does not report the key as
// missing.
const unread = "?"

// plain is a key whose value is a string.
func plain[T ~string](name string, to *T) key {
	return key{name: name, read: func(b *body, name string) {
		if b.has(name) {
			*to = T(orUnread(b.text(name)))
		}
	}}
}

func orUnread(s string) string {
	if s == "" {
		return unread
	}
	return s
}

// pathTo is a key whose value is a path. What f describes must exist there.
func pathTo(f file, name string, to *string) key {
	return key{name: name, read: func(b *body, name string) {
		if !b.has(name) {
			return
		}
		f.at, f.path = b.place(name), b.string(name, f.secret)
		if *to = orUnread(f.path); f.path != "" {
			b.files = append(b.files, f)
		}
	}}
}

func folder(name string, to *string) key       { return pathTo(file{dir: true}, name, to) }
func regularFile(name string, to *string) key  { return pathTo(file{regular: true}, name, to) }
func fileOrFolder(name string, to *string) key { return pathTo(file{}, name, to) }

// secretFile is a key whose value is the path of a file with a secret. Messages show the value only if there is
// such a file: an operator may have written the secret itself.
func secretFile(name string, to *string) key {
	return pathTo(file{regular: true, secret: true}, name, to)
}

// cacheFile is a key whose value is the path of a file that the source writes. Its folder must exist; the file need
// not.
func cacheFile(name string, to *string) key {
	return key{name: name, read: func(b *body, name string) {
		plain(name, to).read(b, name)
		if !b.wrong[name] && *to != "" {
			b.files = append(b.files, file{at: b.place(name), path: filepath.Dir(*to), dir: true, cache: *to})
		}
	}}
}

// texts is a key whose value is a list of strings in any order.
func texts(name string, to *[]string) key {
	return key{name: name, read: func(b *body, name string) {
		if *to = b.texts(name); b.wrong[name] && len(*to) == 0 {
			*to = []string{unread}
		}
	}}
}

// textMap is a key whose value is a map from names to strings.
func textMap(name, example string, to *map[string]string) key {
	return key{name: name, read: func(b *body, name string) {
		if *to = b.textMap(name, example); b.wrong[name] && len(*to) == 0 {
			*to = map[string]string{unread: unread}
		}
	}}
}

// pathMap is a key whose value is a map from names to files or folders.
func pathMap(name, example string, to *map[string]string) key {
	return key{name: name, read: func(b *body, name string) {
		textMap(name, example, to).read(b, name)
		for _, label := range slices.Sorted(maps.Keys(*to)) {
			if label != unread {
				b.files = append(b.files, file{at: under(b.place(name), label), path: (*to)[label]})
			}
		}
	}}
}

// flag is a key whose value is true or false.
func flag(name string, to *bool) key {
	return key{name: name, read: func(b *body, name string) { *to = b.boolean(name, *to) }}
}

// duration is a key whose value is a duration within limits.
func duration(name string, to *time.Duration, otherwise, least, most time.Duration) key {
	return key{name: name, read: func(b *body, name string) { *to = b.duration(name, otherwise, least, most) }}
}

// integer is a key whose value is a whole number within limits.
func integer[T int | int64](name string, to *T, otherwise, least, most int64) key {
	return key{name: name, read: func(b *body, name string) { *to = T(b.integer(name, otherwise, least, most)) }}
}

// readKeys reads the keys of a block.
func (b *body) readKeys(keys []key) {
	for _, k := range keys {
		b.examples[k.name] = k.example
		b.asked = append(b.asked, k.name)
		k.read(b, k.name)
	}
}

// refuse reports an error of a source's constructor: each sources.FieldError at the key that has set the field,
// everything else at the block. It skips a key whose value could not be read: that was reported already, and the
// constructor has not seen the value.
func (b *body) refuse(err error) {
	unread := maps.Clone(b.wrong)
	for _, err := range split(err) {
		wrong, ok := errors.AsType[sources.FieldError](err)
		switch {
		case ok && unread[wrong.Field]:
		case ok && slices.Contains(b.asked, wrong.Field):
			b.fail(wrong.Field, "%s", b.sentence(wrong))
		default:
			b.broken = true
			b.problems.add(b.path, "%v", err)
		}
	}
}

// split returns the errors that were joined by errors.Join.
func split(err error) []error {
	switch joined := err.(type) { //nolint:errorlint // the words of an error that wraps others belong together
	case nil:
		return nil
	case interface{ Unwrap() []error }:
		var all []error
		for _, err := range joined.Unwrap() {
			all = append(all, split(err)...)
		}
		return all
	}
	return []error{err}
}

// sentence returns the message about a key. If the constructor says what the value must be, the message begins with
// what the value is. If the key has an example, the message ends with it.
func (b *body) sentence(wrong sources.FieldError) string {
	said, example := wrong.Problem, b.examples[wrong.Field]
	must := strings.HasPrefix(said, "must ")
	if values := b.values[wrong.Field]; must && len(values) == 1 {
		said = "is " + values[0].String() + ", but " + said
	}
	if example != "" && (must || !b.has(wrong.Field)) {
		said += ": write " + b.called(wrong.Field) + " = " + example
	}
	return said
}
