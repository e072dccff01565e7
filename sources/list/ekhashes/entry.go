package ekhashes

import (
	"errors"
	"io"
)

// ParseEntry reads one entry of the JSON format, an element of "keys". It returns warnings about
// doubtful fields, and a *list.FormatError if the entry breaks the rules of the format.
func ParseEntry(data []byte) (Entry, []string, error) {
	p := newJSONParser(data, 1)
	if err := p.key(); err != nil {
		return Entry{}, nil, err
	}
	if _, err := p.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return Entry{}, nil, p.failAt(p.dec.InputOffset()-1, "something after the entry")
	}
	var doubts []string
	for _, n := range p.doubts.order {
		doubts = append(doubts, n.text)
	}
	e := p.entries[0]
	name, labels := p.records.of(e.record)
	return Entry{e.hash, name, labels}, doubts, nil
}
