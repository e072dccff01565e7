package ekhashes

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// JSON returns the JSON form, with an entry on each line, sorted by hash. Parse makes
// the same list of it.
func (d *Document) JSON() []byte {
	b := []byte(`{"version": 1,`)
	if d.header.HasSerial {
		b = strconv.AppendUint(append(b, ` "serial": `...), d.header.Serial, 10)
		b = append(b, ',')
	}
	if !d.header.Expires.IsZero() {
		b = append(append(b, ` "expires": "`...), list.FormatTime(d.header.Expires)...)
		b = append(b, `",`...)
	}
	if d.header.Name != "" {
		b = append(quoted(append(b, ` "list": `...), d.header.Name), ',')
	}
	b = append(b, "\n \"keys\": ["...)
	between := "\n  "
	for e := range d.All() {
		b = e.appendJSON(append(b, between...))
		between = ",\n  "
	}
	return append(b, "]}\n"...)
}

func (e Entry) appendJSON(b []byte) []byte {
	if e.Name == "" && len(e.Labels) == 0 {
		return quoted(b, e.Hash.String())
	}
	b = quoted(append(b, `{"hash": `...), e.Hash.String())
	if e.Name != "" {
		b = quoted(append(b, `, "name": `...), e.Name)
	}
	if len(e.Labels) > 0 {
		before := `, "labels": [`
		for _, label := range e.Labels {
			b = quoted(append(b, before...), label)
			before = ", "
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// quoted appends a text as a JSON string. All texts of a Document are UTF-8.
func quoted(b []byte, text string) []byte {
	b, _ = jsontext.AppendQuote(b, text)
	return b
}

// Text returns the text form, sorted by hash. Parse makes the same list of it, if
// Options.AllowEmpty is set or there is an entry. The error says what the form cannot
// express: a serial, an expiry and the list's name, and blanks or a # in a name or a
// label.
func (d *Document) Text() ([]byte, error) {
	if d.header != (list.Header{}) {
		return nil, errors.New("a text list has no serial, no expiry and no name of its own: write it as JSON")
	}
	var b bytes.Buffer
	for e := range d.All() {
		b.WriteString(e.Hash.String())
		if e.Name == "-" {
			return nil, fmt.Errorf("%v: a text list cannot have the name %q: write it as JSON", e.Hash, e.Name)
		}
		words := append([]string{e.Name}, e.Labels...)
		if e.Name == "" {
			words[0] = "-"
		}
		if e.Name == "" && len(e.Labels) == 0 {
			words = nil
		}
		for _, word := range words {
			if strings.ContainsAny(word, " #") {
				return nil, fmt.Errorf("%v: a text list cannot have %q, with a blank or a #: write it as JSON",
					e.Hash, word)
			}
			b.WriteString(" " + word)
		}
		b.WriteByte('\n')
	}
	return b.Bytes(), nil
}
