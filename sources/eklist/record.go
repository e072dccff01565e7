package eklist

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A Record is what a list says about one TPM besides its hash, in the form in
// which a Snapshot holds it and a cache may keep it: the name, then each label,
// each behind one byte that is its length. An empty Record says nothing. It is
// never changed.
type Record []byte

// Attributes returns the name and the labels. They share no memory with r.
func (r Record) Attributes() sources.Attributes {
	if len(r) == 0 {
		return sources.Attributes{}
	}
	all := string(r) // all values share one copy
	value := func() string {
		n := 1 + int(all[0])
		v := all[1:n]
		all = all[n:]
		return v
	}
	a := sources.Attributes{Name: value()}
	if n := r.labels(); n > 0 {
		a.Labels = make([]string, 0, n)
		for len(all) > 0 {
			a.Labels = append(a.Labels, value())
		}
	}
	return a
}

// name returns the name, which may be empty.
func (r Record) name() []byte {
	if len(r) == 0 {
		return nil
	}
	return r[1 : 1+int(r[0])]
}

// labels returns how many labels there are.
func (r Record) labels() int {
	n := -1
	for len(r) > 0 {
		r = r[1+int(r[0]):]
		n++
	}
	return max(n, 0)
}

// recordBuilder makes records, one after another in the same memory. Its methods
// return what is wrong with a value, or nothing. They do not retain it.
type recordBuilder struct {
	name   []byte
	labels []byte // as in a Record
	given  int    // labels, those that were there twice included
}

func (b *recordBuilder) reset() {
	b.name, b.labels, b.given = b.name[:0], b.labels[:0], 0
}

func (b *recordBuilder) empty() bool { return len(b.name) == 0 && len(b.labels) == 0 }

// parse takes over a record that comes from elsewhere and may be anything.
func (b *recordBuilder) parse(r Record) string {
	if len(r) == 0 {
		return ""
	}
	for first := true; len(r) > 0; first = false {
		n := 1 + int(r[0])
		if n > len(r) {
			return "a record that is cut off"
		}
		set := b.addLabel
		if first {
			set = b.setName
		}
		if problem := set(r[1:n]); problem != "" {
			return problem
		}
		r = r[n:]
	}
	return ""
}

// setName sets the name, without the blanks around it. An empty one is none.
func (b *recordBuilder) setName(name []byte) string {
	name = trimBlanks(name)
	b.name = append(b.name[:0], name...)
	return checkText(sources.PrefixName, "name", name)
}

// addLabel adds a label, without the blanks around it. One that is there already
// stays there once.
func (b *recordBuilder) addLabel(label []byte) string {
	if b.given++; b.given > sources.MaxLabels {
		return fmt.Sprintf("more than %d labels", sources.MaxLabels)
	}
	if label = trimBlanks(label); len(label) == 0 {
		return "an empty label"
	}
	if problem := checkText(sources.PrefixLabel, "label", label); problem != "" {
		return problem
	}
	for rest := b.labels; len(rest) > 0; {
		n := 1 + int(rest[0])
		if bytes.Equal(rest[1:n], label) {
			return ""
		}
		rest = rest[n:]
	}
	b.labels = append(append(b.labels, byte(len(label))), label...)
	return ""
}

// appendTo appends the Record to dst.
func (b *recordBuilder) appendTo(dst []byte) []byte {
	dst = append(append(dst, byte(len(b.name))), b.name...)
	return append(dst, b.labels...)
}

// trimBlanks is sources.TrimBlanks, and decides without it of nearly all texts,
// which may be millions.
func trimBlanks(text []byte) []byte {
	if n := len(text); n == 0 || isGraphic(text[0]) && isGraphic(text[n-1]) {
		return text
	}
	return []byte(sources.TrimBlanks(string(text)))
}

// isGraphic reports whether a byte is a visible character of ASCII.
func isGraphic(c byte) bool { return c > ' ' && c <= '~' }

// checkText is sources.CheckText, and decides without it of nearly all texts,
// as trimBlanks does.
func checkText(prefix, what string, text []byte) string {
	if len(prefix)+len(text) <= sources.MaxSelector && isPlain(text) {
		return ""
	}
	if err := sources.CheckText(prefix, what, string(text)); err != nil {
		return err.Error()
	}
	return ""
}

// isPlain reports whether a text is printable ASCII, as nearly all are.
func isPlain(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// arena holds records, each behind two bytes that are its length. At 0 there is
// an empty one.
type arena []byte

// add appends a record and returns where it is.
func (a *arena) add(b *recordBuilder) uint32 {
	if len(*a) == 0 {
		*a = append(*a, 0, 0)
	}
	at := len(*a)
	*a = b.appendTo(append(*a, 0, 0))
	binary.BigEndian.PutUint16((*a)[at:], uint16(len(*a)-at-2))
	return uint32(at)
}

// at returns the record at an offset that add has returned, or at 0.
func (a arena) at(offset uint32) Record {
	if offset == 0 {
		return nil
	}
	n := uint32(binary.BigEndian.Uint16(a[offset:]))
	return Record(a[offset+2 : offset+2+n : offset+2+n])
}
