package eklist

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// parseText reads the text form.
func parseText(in *input, c *collector, allowEmpty bool) (*Snapshot, error) {
	p := textParser{in: in, list: c}
	for {
		p.plain()
		line, ok, err := p.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		problem, whole := p.entry(line)
		if problem == "" {
			continue
		}
		p.mistakes = append(p.mistakes, p.mistake(problem))
		p.lines++
		if whole || len(p.mistakes) == MaxMistakes {
			break
		}
	}
	if err := p.mistakes.err(); err != nil {
		return nil, err
	}
	if c.n == 0 && !allowEmpty {
		return nil, &FormatError{"line 1", "no entry, as in a truncated file: " +
			"if it is meant to be empty, allow that in the configuration or write the JSON list {\"keys\": []}"}
	}
	return c.snapshot(Header{}, p.place)
}

// textParser reads lines.
type textParser struct {
	in    *input
	list  *collector
	lines int       // how many were read
	other []lineGap // where lines are no entries
	words [][]byte  // of one line, kept for its memory

	mistakes FormatErrors
}

// A lineGap says that from an entry on, numbers of lines and of entries differ
// by so much.
type lineGap struct{ entry, by uint32 }

// plain takes the lines in the buffer that are a hash and LF, which are most
// lines of most long lists.
func (p *textParser) plain() {
	const width = 2*len(sources.EKHash{}) + 1
	in := p.in
	for in.end-in.pos >= width && in.buf[in.pos+width-1] == '\n' {
		digits := in.buf[in.pos : in.pos+width-1]
		if p.list.next(in.offset()).UnmarshalText(digits) != nil {
			return
		}
		p.take()
		p.list.add(nil)
		in.pos += width
	}
}

// take counts a line that is an entry.
func (p *textParser) take() {
	p.lines++
	by := uint32(p.lines - p.list.n)
	if n := len(p.other); n == 0 || p.other[n-1].by != by {
		p.other = append(p.other, lineGap{uint32(p.list.n), by})
	}
}

// place returns where an entry was.
func (p *textParser) place(entry uint32) string {
	var by uint32
	for _, g := range p.other {
		if g.entry > entry {
			break
		}
		by = g.by
	}
	return fmt.Sprintf("line %d", entry+by)
}

func (p *textParser) mistake(problem string) *FormatError {
	return &FormatError{fmt.Sprintf("line %d", p.lines+1), problem}
}

// next returns the next line, without its end. It is valid until the next call.
func (p *textParser) next() (line []byte, ok bool, err error) {
	in := p.in
	for from := 0; ; {
		rest := in.buf[in.pos:in.end]
		if i := bytes.IndexByte(rest[from:], '\n'); i >= 0 {
			in.pos += from + i + 1
			return bytes.TrimSuffix(rest[:from+i], []byte{'\r'}), true, nil
		}
		if len(rest) == len(in.buf) {
			return nil, false, append(p.mistakes,
				p.mistake(fmt.Sprintf("a line of more than %d bytes", blockSize))).err()
		}
		from = len(rest)
		if !in.fill() {
			break
		}
	}
	if err := in.failed(); err != nil {
		return nil, false, err
	}
	rest := in.buf[in.pos:in.end]
	in.pos = in.end
	return bytes.TrimSuffix(rest, []byte{'\r'}), len(rest) > 0, nil
}

// entry reads one line. It returns what is wrong with it, or nothing; whole is set
// if the file is no list at all.
func (p *textParser) entry(line []byte) (problem string, whole bool) {
	if !utf8.Valid(line) {
		return "not UTF-8", true
	}
	if bytes.ContainsFunc(line, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) {
		return "a control character", false
	}
	line, _, _ = bytes.Cut(line, []byte{'#'})
	p.words = appendWords(p.words[:0], line)
	if len(p.words) == 0 {
		p.lines++
		return "", false
	}
	hash, err := hashOf(p.words[0])
	if err != nil {
		return p.notHash(bytes.TrimSpace(line))
	}
	attrs := &p.list.attrs
	attrs.reset()
	for i, word := range p.words[1:] {
		if i == 0 && string(word) == "-" {
			continue
		}
		if i == 0 {
			problem = attrs.setName(word)
		} else {
			problem = attrs.addLabel(word)
		}
		if problem != "" {
			return problem, false
		}
	}
	*p.list.next(p.in.offset()) = hash
	p.take()
	p.list.add(attrs)
	return "", false
}

// notHash says what is wrong with a line that does not begin with a hash. What is in
// it elsewhere counts too: a line of a log, or of what the agent prints.
func (p *textParser) notHash(line []byte) (problem string, whole bool) {
	if before, _, ok := around(line); ok && bytes.ContainsAny(before, " \t") {
		return fmt.Sprintf("a hash stands behind %s: write the hash first, then a name or -, then labels",
			quote(before)), false
	}
	return notHash(p.words[0])
}

// appendWords appends what spaces and tabs separate, one more than a line may
// have at most.
func appendWords(words [][]byte, line []byte) [][]byte {
	const most = 2 + sources.MaxLabels + 1
	for len(words) < most {
		line = bytes.TrimLeft(line, " \t")
		if len(line) == 0 {
			break
		}
		end := bytes.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		words, line = append(words, line[:end]), line[end:]
	}
	return words
}
