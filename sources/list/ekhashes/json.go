package ekhashes

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// parseJSON reads the JSON format. It detects duplicate names itself, in objects with known fields
// only. The values of unknown fields are skipped, up to 10,000 levels deep (RFC 8259, 9).
func parseJSON(data []byte) (*Document, error) {
	p := newJSONParser(data, most(data))
	if err := p.object(p.field); err != nil {
		return nil, p.withMistakes(err)
	}
	if _, err := p.dec.ReadToken(); !errors.Is(err, io.EOF) {
		if err == nil {
			return nil, p.withMistakes(p.failAt(p.dec.InputOffset()-1, "something after the list"))
		}
		return nil, p.withMistakes(p.readError(err))
	}
	if !p.hasKeys {
		return nil, p.fail(`no field "keys": a list without entries has "keys": []` + p.doubts.hint())
	}
	p.trim()
	d, twice := p.build(p.header)
	p.mistakes = append(p.mistakes, p.located(twice)...)
	if err := p.mistakes.Err(); err != nil {
		return nil, err
	}
	d.warnings = p.doubts.warnings()
	return d, nil
}

// withMistakes combines an error that ends the parsing with the mistakes before it.
func (p *jsonParser) withMistakes(err error) error {
	last, ok := err.(*list.FormatError) //nolint:errorlint // bare, as failAt returns it
	if !ok || len(p.mistakes) == 0 {
		return err
	}
	if len(p.mistakes) < list.MaxMistakes {
		p.mistakes = append(p.mistakes, last)
	}
	return p.mistakes
}

// located returns the mistakes for duplicate entries. It parses the list once more to find the
// offsets of these entries.
func (p *jsonParser) located(twice []repeat) list.FormatErrors {
	if len(twice) == 0 {
		return nil
	}
	again := newJSONParser(p.data, 0)
	again.offsets = map[uint32]int64{}
	for _, r := range twice {
		again.offsets[r.at], again.offsets[r.first] = -1, -1
	}
	_ = again.object(again.field) // p has read the same without an error
	var mistakes list.FormatErrors
	for _, r := range twice {
		p.index = int(r.first)
		first := p.placeAt(again.offsets[r.first])
		p.index = int(r.at)
		mistakes = append(mistakes, p.mistakeAt(again.offsets[r.at], r.problem(first)))
	}
	return mistakes
}

// jsonParser reads one JSON list.
type jsonParser struct {
	builder
	data    []byte
	dec     *jsontext.Decoder
	header  list.Header
	hasKeys bool

	index   int   // of the entry that is being read, or -1
	at      int64 // where the last value read begins
	hash    sources.EKHash
	hasHash bool

	fieldName []byte // the last one read, or its beginning

	doubts   doubts
	mistakes list.FormatErrors
	broken   bool // the decoder has failed and cannot continue

	// If offsets is not nil, the parser stores the offset of the hash of each entry whose index is
	// a key in it, and adds no entries.
	offsets map[uint32]int64

	fields  []uint64 // hashes of the names of unknown fields in all open objects
	scratch []byte
}

func newJSONParser(data []byte, room int) *jsonParser {
	return &jsonParser{
		builder: newBuilder(func(index uint32) string { return fmt.Sprintf("keys[%d]", index) }, room),
		data:    data,
		// The decoder reads the bytes of a Buffer in place, without copying them.
		dec:   jsontext.NewDecoder(bytes.NewBuffer(data), jsontext.AllowDuplicateNames(true)),
		index: -1,
	}
}

// field reads a field of the list.
func (p *jsonParser) field(name string) error {
	if name == "keys" {
		p.hasKeys = true
		err := p.array(p.element)
		p.index = -1
		return err
	}
	if null, err := p.null(); null || err != nil {
		return err
	}
	switch name {
	case "version":
		version, err := p.number()
		if err == nil && version != 1 {
			return p.fail("a version of the format other than 1")
		}
		return err
	case "serial":
		var err error
		p.header.Serial, err = p.number()
		p.header.HasSerial = true
		return err
	case "expires":
		return p.expires()
	case "list":
		name, err := p.text()
		if err != nil {
			return err
		}
		p.header.Name = string(name)
		if err := sources.CheckText("", "list name", p.header.Name); err != nil {
			return p.fail(err.Error())
		}
		return nil
	}
	return p.unknown(false)
}

func (p *jsonParser) expires() error {
	text, err := p.text()
	if err != nil {
		return err
	}
	expires, err := list.ParseTime(string(text))
	if err != nil {
		return p.fail(err.Error())
	}
	p.header.Expires = expires
	return nil
}

// element reads an element of keys. After a mistake, reading goes on with the next element, so that
// the mistakes in all elements are reported at once.
func (p *jsonParser) element() error {
	p.index++
	depth, open := p.dec.StackDepth(), len(p.fields)
	err := p.key()
	if err == nil {
		return nil
	}
	mistake, ok := err.(*list.FormatError) //nolint:errorlint // bare, as failAt returns it
	if !ok || p.broken || len(p.mistakes) == list.MaxMistakes-1 {
		return err
	}
	p.mistakes, p.fields = append(p.mistakes, mistake), p.fields[:open]
	for p.dec.StackDepth() > depth {
		if _, err := p.dec.ReadToken(); err != nil {
			return p.readError(err)
		}
	}
	return nil
}

// key reads an entry.
func (p *jsonParser) key() error {
	p.says.reset()
	if p.dec.PeekKind() == '{' {
		p.hasHash = false
		if err := p.object(p.entryField); err != nil {
			return err
		}
		if !p.hasHash {
			return p.fail(`no field "hash"`)
		}
	} else if err := p.readHash(); err != nil {
		return err
	}
	if p.offsets == nil {
		p.take(uint32(p.index), p.hash)
	}
	return nil
}

func (p *jsonParser) readHash() error {
	text, err := p.text()
	if err != nil {
		return err
	}
	if p.hash.UnmarshalText(text) != nil {
		problem, _ := notHash(text)
		return p.fail(problem)
	}
	p.hasHash = true
	if _, wanted := p.offsets[uint32(p.index)]; wanted {
		p.offsets[uint32(p.index)] = p.at
	}
	return nil
}

// entryField reads a field of an entry that is an object.
func (p *jsonParser) entryField(name string) error {
	switch name {
	case "hash":
		return p.readHash()
	case "name":
		text, null, err := p.textOrNull()
		if null || err != nil {
			return err
		}
		return p.problem(p.says.setName(text))
	case "labels":
		if null, err := p.null(); null || err != nil {
			return err
		}
		return p.array(p.label)
	}
	return p.unknown(true)
}

// unknown skips the value of an unknown field, unless the field is doubtful.
func (p *jsonParser) unknown(entry bool) error {
	n := p.doubts.field(p.fieldName, entry)
	if n == nil {
		return p.skip()
	}
	at := p.at
	place := func() string { return p.placeAt(at) }
	switch p.dec.PeekKind() {
	case '{', '[':
		p.doubts.add(n, nil, place)
		return p.skip()
	}
	raw, err := p.dec.ReadValue()
	if err != nil {
		return p.readError(err)
	}
	p.doubts.add(n, raw, place)
	return nil
}

// label reads a label.
func (p *jsonParser) label() error {
	text, err := p.text()
	if err != nil {
		return err
	}
	return p.problem(p.says.addLabel(text))
}

// problem returns an error at the last value read, unless problem is empty.
func (p *jsonParser) problem(problem string) error {
	if problem != "" {
		return p.fail(problem)
	}
	return nil
}
