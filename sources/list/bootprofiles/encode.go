package bootprofiles

import (
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// Encode returns the JSON of a document, indented, with its comments. Parse returns the same
// document for it.
func Encode(d *Document) []byte {
	b := jsontext.Value(d.appendTo(nil))
	if err := b.Indent(jsontext.WithIndent("  ")); err != nil {
		// A text is not UTF-8. Parse reports that. Documents made by Parse have no such text.
		return b
	}
	return append(b, '\n')
}

// object writes an object, member by member.
type object struct {
	b      []byte
	member bool // there is one already
}

func (o *object) name(name string) {
	if o.member {
		o.b = append(o.b, ',')
	}
	o.member = true
	o.b = append(append(append(o.b, '"'), name...), `":`...)
}

func (o *object) text(name, text string) {
	o.name(name)
	o.b = appendText(o.b, text)
}

func (o *object) time(name string, t time.Time) {
	if !t.IsZero() {
		o.text(name, list.FormatTime(t))
	}
}

func (o *object) texts(name string, all []string) {
	o.name(name)
	o.b = append(o.b, '[')
	for i, text := range all {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = appendText(o.b, text)
	}
	o.b = append(o.b, ']')
}

func (o *object) digests(name string, all [][]byte) {
	texts := make([]string, len(all))
	for i, digest := range all {
		texts[i] = hex.EncodeToString(digest)
	}
	o.texts(name, texts)
}

func (o *object) comment(lines []string) {
	switch {
	case lines == nil:
	case len(lines) == 1:
		o.text("comment", lines[0])
	default:
		o.texts("comment", lines)
	}
}

// inside writes a member that is an object.
func (o *object) inside(name string, write func(*object)) {
	o.name(name)
	o.b = appendObject(o.b, write)
}

func appendObject(b []byte, write func(*object)) []byte {
	o := object{b: append(b, '{')}
	write(&o)
	return append(o.b, '}')
}

func appendText(b []byte, text string) []byte {
	quoted, err := jsontext.AppendQuote(b, text)
	if err != nil { // it is not UTF-8
		return append(b, "\xff"...)
	}
	return quoted
}

func (d *Document) appendTo(b []byte) []byte {
	return appendObject(b, func(o *object) {
		o.name("version")
		o.b = append(o.b, '1')
		if d.header.HasSerial {
			o.name("serial")
			o.b = strconv.AppendUint(o.b, d.header.Serial, 10)
		}
		o.time("expires", d.header.Expires)
		if d.header.Name != "" {
			o.text("list", d.header.Name)
		}
		o.comment(d.comment)
		o.name("profiles")
		o.b = append(o.b, '[')
		for i := range d.profiles {
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.b = appendObject(o.b, d.profiles[i].write)
		}
		o.b = append(o.b, ']')
	})
}

// write writes the members of a profile.
func (p *Profile) write(o *object) {
	o.text("name", p.Name)
	if len(p.Labels) > 0 {
		o.texts("labels", p.Labels)
	}
	o.time("expires", p.Expires)
	o.comment(p.Comments[""])
	if p.PCRs != nil {
		o.inside("pcrs", p.writePCRs)
	}
	if p.SecureBoot != nil {
		o.inside("secureboot", p.writeSecureBoot)
	}
	p.rule(o, "images", "images", "only", p.Images)
}

func (p *Profile) writePCRs(o *object) {
	o.comment(p.Comments["pcrs"])
	o.inside(p.Bank, func(o *object) {
		o.comment(p.Comments["pcrs."+p.Bank])
		for _, pcr := range slices.Sorted(maps.Keys(p.PCRs)) {
			o.digests(strconv.Itoa(pcr), p.PCRs[pcr])
		}
	})
}

func (p *Profile) writeSecureBoot(o *object) {
	s := p.SecureBoot
	o.comment(p.Comments["secureboot"])
	if s.Enabled != nil {
		o.name("enabled")
		o.b = strconv.AppendBool(o.b, *s.Enabled)
	}
	p.rule(o, "secureboot.db", "db", "only", s.DB)
	p.rule(o, "secureboot.dbx", "dbx", "contains", s.DBX)
	p.rule(o, "secureboot.authorities", "authorities", "only", s.Authorities)
}

// rule writes a condition, if there is one.
func (p *Profile) rule(o *object, of, name, rule string, values [][]byte) {
	if values == nil {
		return
	}
	o.inside(name, func(o *object) {
		o.comment(p.Comments[of])
		o.digests(rule, values)
	})
}

// places returns the objects of the profile that may have a comment.
func (p *Profile) places() []string {
	all := []string{""}
	if p.PCRs != nil {
		all = append(all, "pcrs", "pcrs."+p.Bank)
	}
	if s := p.SecureBoot; s != nil {
		all = append(all, "secureboot")
		for name, values := range map[string][][]byte{"db": s.DB, "dbx": s.DBX, "authorities": s.Authorities} {
			if values != nil {
				all = append(all, "secureboot."+name)
			}
		}
	}
	if p.Images != nil {
		all = append(all, "images")
	}
	return all
}

// said returns the content of a profile, without comments and regardless of the order in its lists.
func (p *Profile) said() string {
	q := *p
	q.Comments = nil
	q.Labels = slices.Sorted(slices.Values(p.Labels))
	q.Images = sorted(p.Images)
	q.PCRs = map[int][][]byte{}
	for pcr, values := range p.PCRs {
		q.PCRs[pcr] = sorted(values)
	}
	if p.SecureBoot != nil {
		s := *p.SecureBoot
		s.DB, s.DBX, s.Authorities = sorted(s.DB), sorted(s.DBX), sorted(s.Authorities)
		q.SecureBoot = &s
	}
	return string(appendObject(nil, q.write))
}

// sorted returns digests in order; nil if there are none.
func sorted(digests [][]byte) [][]byte {
	return slices.SortedFunc(slices.Values(digests), func(a, b []byte) int {
		return strings.Compare(string(a), string(b))
	})
}
