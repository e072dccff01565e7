package bootprofiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// The limits of the JSON in a file.
const (
	maxDepth = 32
	maxNodes = 1 << 17
)

// A value is one JSON value and its place in the file.
type value struct {
	kind jsontext.Kind
	at   int64
	text string // the text of a string; a number as it is written
	// names are the names of an object's members, without duplicates. all are the values of an
	// object's members or the elements of an array.
	names []string
	all   []value
}

// readJSON reads a file into its values. It stops at the first mistake.
func readJSON(data []byte) (*value, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), MaxBytes)
	}
	const mark = "\ufeff"
	data = bytes.TrimPrefix(data, []byte(mark))
	if begin := bytes.TrimLeft(data, " \t\r\n"); !bytes.HasPrefix(begin, []byte("{")) {
		return nil, mistake("byte 0", "not a JSON file, which begins with {: it begins with "+list.Quoted(begin))
	}
	t := treeReader{dec: jsontext.NewDecoder(bytes.NewBuffer(data))} // it refuses duplicate names
	v, err := t.read(0)
	if err != nil {
		return nil, err
	}
	if _, err := t.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, mistake(byteAt(t.dec.InputOffset()), "something after the file's object")
	}
	return &v, nil
}

type treeReader struct {
	dec   *jsontext.Decoder
	nodes int
}

// read reads the next value.
func (t *treeReader) read(depth int) (v value, err error) {
	var raw jsontext.Value
	switch v.kind = t.dec.PeekKind(); v.kind {
	case '{', '[':
		_, err = t.dec.ReadToken()
		raw = jsontext.Value("{")
	default:
		raw, err = t.dec.ReadValue()
	}
	if err != nil {
		return value{}, t.failed(err)
	}
	v.at = t.dec.InputOffset() - int64(len(raw))
	switch t.nodes++; {
	case t.nodes > maxNodes:
		return value{}, mistake(byteAt(v.at), fmt.Sprintf("more than %d values", maxNodes))
	case depth > maxDepth:
		return value{}, mistake(byteAt(v.at), fmt.Sprintf("more than %d levels of brackets", maxDepth))
	}
	switch v.kind {
	case '{', '[':
		err = t.inside(&v, depth)
	case '"':
		var text []byte
		if text, err = jsontext.AppendUnquote(nil, raw); err != nil {
			err = t.failed(err)
		}
		v.text = string(text)
	default:
		v.text = string(raw)
	}
	return v, err
}

// inside reads what is in an object or an array.
func (t *treeReader) inside(v *value, depth int) error {
	for {
		switch t.dec.PeekKind() {
		case '}', ']':
			if _, err := t.dec.ReadToken(); err != nil {
				return t.failed(err)
			}
			return nil
		}
		if v.kind == '{' {
			name, err := t.dec.ReadToken()
			if err != nil {
				return t.failed(err)
			}
			v.names = append(v.names, name.String())
		}
		inner, err := t.read(depth + 1)
		if err != nil {
			return err
		}
		v.all = append(v.all, inner)
	}
}

// failed converts an error of the decoder, without the text that it quotes.
func (t *treeReader) failed(err error) error {
	at, problem := t.dec.InputOffset(), "the file is cut off"
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		at = syntax.ByteOffset
		switch {
		case errors.Is(syntax.Err, jsontext.ErrDuplicateName):
			problem = "a member that the object has twice"
		case !errors.Is(syntax.Err, io.ErrUnexpectedEOF):
			problem = "not JSON: " + syntax.Err.Error()
		}
	}
	return mistake(byteAt(at), problem)
}

func byteAt(offset int64) string { return fmt.Sprintf("byte %d", offset) }

func mistake(place, problem string) *list.FormatError {
	return &list.FormatError{Place: place, Problem: problem}
}
