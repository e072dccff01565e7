package ekhashes

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// maxFields limits the number of fields in an object that is examined. Each field is compared with
// all fields before it.
const maxFields = 256

// fail returns an error at the last value read.
func (p *jsonParser) fail(problem string) error { return p.failAt(p.at, problem) }

// read records that a value of n bytes was read.
func (p *jsonParser) read(n int) { p.at = p.dec.InputOffset() - int64(n) }

func (p *jsonParser) failAt(offset int64, problem string) error { return p.mistakeAt(offset, problem) }

func (p *jsonParser) mistakeAt(offset int64, problem string) *list.FormatError {
	return &list.FormatError{
		Place: p.placeAt(offset), Problem: problem,
		Line: 1 + bytes.Count(p.data[:min(offset, int64(len(p.data)))], []byte{'\n'}),
	}
}

func (p *jsonParser) placeAt(offset int64) string {
	place := fmt.Sprintf("byte %d", offset)
	if p.index >= 0 {
		place = fmt.Sprintf("keys[%d] (%s)", p.index, place)
	}
	return place
}

// readError converts an error of the decoder, without the text that it quotes.
func (p *jsonParser) readError(err error) error {
	p.broken = true
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(syntax.Err, io.ErrUnexpectedEOF) {
			return p.failAt(syntax.ByteOffset, "the list is cut off")
		}
		return p.failAt(syntax.ByteOffset, "not JSON: "+syntax.Err.Error())
	}
	return p.failAt(p.dec.InputOffset(), "the list is cut off")
}

// object reads an object. field reads, or skips, the value of each field.
func (p *jsonParser) object(field func(name string) error) error {
	if err := p.open('{', "an object"); err != nil {
		return err
	}
	var known uint8 // the known fields that have occurred
	outer := len(p.fields)
	for n := 1; p.dec.PeekKind() == '"'; n++ {
		text, err := p.text()
		if err != nil {
			return err
		}
		name, bit := fieldName(text)
		twice := known&bit != 0
		if known |= bit; bit == 0 {
			hash := maphash.Bytes(p.seed, text)
			twice = slices.Contains(p.fields[outer:], hash)
			p.fields = append(p.fields, hash)
		}
		switch {
		case twice:
			return p.fail("a field that the object has twice")
		case n > maxFields:
			return p.fail(fmt.Sprintf("an object with more than %d fields", maxFields))
		}
		p.fieldName = append(p.fieldName[:0], text[:min(len(text), list.MaxQuoted+1)]...)
		if err := field(name); err != nil {
			return err
		}
	}
	p.fields = p.fields[:outer]
	return p.skip() // the brace
}

// fieldName returns a known name without allocating it, and a bit that represents it. It returns
// nothing for an unknown name.
func fieldName(name []byte) (known string, bit uint8) {
	for i, known := range [...]string{"hash", "name", "labels", "keys", "version", "serial", "expires", "list"} {
		if string(name) == known {
			return known, 1 << i
		}
	}
	return "", 0
}

// open reads the beginning of an object or an array.
func (p *jsonParser) open(kind jsontext.Kind, what string) error {
	switch p.dec.PeekKind() {
	case 'n', 't', 'f', '0', '"':
		raw, err := p.dec.ReadValue()
		if err != nil {
			return p.readError(err)
		}
		p.read(len(raw))
		return p.fail(fmt.Sprintf("a JSON %v instead of %s", raw.Kind(), what))
	}
	tok, err := p.dec.ReadToken()
	if err != nil {
		return p.readError(err)
	}
	p.read(1)
	if tok.Kind() != kind {
		return p.fail(fmt.Sprintf("a JSON %v instead of %s", tok.Kind(), what))
	}
	return nil
}

// array reads an array. element reads each value.
func (p *jsonParser) array(element func() error) error {
	if err := p.open('[', "an array"); err != nil {
		return err
	}
	for {
		switch p.dec.PeekKind() {
		case ']', 0: // 0 is an error, which skip returns
			return p.skip()
		}
		if err := element(); err != nil {
			return err
		}
	}
}

// skip reads the next token or value and drops it.
func (p *jsonParser) skip() error {
	if k := p.dec.PeekKind(); k == ']' || k == '}' {
		if _, err := p.dec.ReadToken(); err != nil {
			return p.readError(err)
		}
		p.read(1)
		return nil
	}
	if err := p.dec.SkipValue(); err != nil {
		return p.readError(err)
	}
	return nil
}

// null reads a null if that is the next value.
func (p *jsonParser) null() (bool, error) {
	if p.dec.PeekKind() != 'n' {
		return false, nil
	}
	return true, p.skip()
}

// text reads a string. It is valid until the next value is read.
func (p *jsonParser) text() ([]byte, error) {
	text, null, err := p.textOrNull()
	if null {
		return nil, p.fail("a JSON null instead of a string")
	}
	return text, err
}

// textOrNull reads a string, as text does, or a null.
func (p *jsonParser) textOrNull() (text []byte, null bool, err error) {
	raw, err := p.dec.ReadValue()
	if err != nil {
		return nil, false, p.readError(err)
	}
	p.read(len(raw))
	switch raw.Kind() {
	case '"':
	case 'n':
		return nil, true, nil
	default:
		return nil, false, p.fail(fmt.Sprintf("a JSON %v instead of a string", raw.Kind()))
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], false, nil
	}
	p.scratch, err = jsontext.AppendUnquote(p.scratch[:0], raw)
	if err != nil {
		return nil, false, p.readError(err)
	}
	return p.scratch, false, nil
}

// number reads a whole number of up to 64 bits.
func (p *jsonParser) number() (uint64, error) {
	raw, err := p.dec.ReadValue()
	if err != nil {
		return 0, p.readError(err)
	}
	p.read(len(raw))
	n, err := list.ParseNumber(raw)
	if err != nil {
		return 0, p.fail(err.Error())
	}
	return n, nil
}
