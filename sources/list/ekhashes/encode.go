package ekhashes

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// WriteJSON writes the JSON format, with an entry on each line, sorted by hash. Parse returns the
// same list for it.
func (d *Document) WriteJSON(w io.Writer) error {
	out := bufio.NewWriterSize(w, writeBuffer)
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
		_, _ = out.Write(b) // Flush returns the error
		b = e.appendJSON(append(b[:0], between...))
		between = ",\n  "
	}
	_, _ = out.Write(append(b, "]}\n"...))
	return out.Flush()
}

// writeBuffer is the number of bytes that are written at once.
const writeBuffer = 64 << 10

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

// WriteText writes the text format, sorted by hash. Parse returns the same list for it, if
// Options.AllowEmpty is set or there is an entry. If the text format cannot express the list,
// nothing is written, and the error says what it cannot express: a serial, an expiry, a name of the
// list, or a blank or # in a name or label.
func (d *Document) WriteText(w io.Writer) error {
	if d.header != (list.Header{}) {
		return errors.New("a text list has no serial, no expiry and no name of its own: write it as JSON")
	}
	for e := range d.All() {
		if err := e.fitsText(); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(w, writeBuffer)
	var b []byte
	for e := range d.All() {
		b = e.appendText(b[:0])
		_, _ = out.Write(b) // Flush returns the error
	}
	return out.Flush()
}

// fitsText returns an error if the text format cannot express the entry.
func (e Entry) fitsText() error {
	if e.Name == "-" {
		return fmt.Errorf("%v: a text list cannot have the name %q: write it as JSON", e.Hash, e.Name)
	}
	for i := range len(e.Labels) + 1 {
		word := e.Name
		if i > 0 {
			word = e.Labels[i-1]
		}
		if strings.ContainsAny(word, " #") {
			return fmt.Errorf("%v: a text list cannot have %q, with a blank or a #: write it as JSON", e.Hash, word)
		}
	}
	return nil
}

// appendText appends the line of an entry.
func (e Entry) appendText(b []byte) []byte {
	b = append(b, e.Hash.String()...)
	if e.Name != "" || len(e.Labels) > 0 {
		b = append(append(b, ' '), cmp.Or(e.Name, "-")...)
	}
	for _, label := range e.Labels {
		b = append(append(b, ' '), label...)
	}
	return append(b, '\n')
}
