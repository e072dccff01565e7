package certs

import (
	"bytes"
	"encoding/binary"
	"slices"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// String types of X.520's DirectoryString and others found in names that
// cryptobyte does not name.
const (
	numericString   = asn1.Tag(18)
	visibleString   = asn1.Tag(26)
	universalString = asn1.Tag(28)
	bmpString       = asn1.Tag(30)
)

// An attribute is one AttributeTypeAndValue of a distinguished name.
type attribute struct {
	oid   []byte // the object identifier's content
	tag   asn1.Tag
	value []byte // the value's content
}

// walkName calls f with each relative distinguished name of a DER Name (RFC
// 5280, 4.1.2.4) and reports whether it is well formed. f must not keep rdn.
func walkName(name []byte, f func(rdn []attribute)) bool {
	in := cryptobyte.String(name)
	var rdns cryptobyte.String
	if !in.ReadASN1(&rdns, asn1.SEQUENCE) || !in.Empty() {
		return false
	}
	var attrs []attribute
	for !rdns.Empty() {
		var set cryptobyte.String
		if !rdns.ReadASN1(&set, asn1.SET) {
			return false
		}
		attrs = attrs[:0]
		for !set.Empty() {
			var pair, oid, value cryptobyte.String
			var tag asn1.Tag
			if !set.ReadASN1(&pair, asn1.SEQUENCE) ||
				!pair.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) ||
				!pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
				return false
			}
			attrs = append(attrs, attribute{oid: oid, tag: tag, value: value})
		}
		f(attrs)
	}
	return true
}

// canonical returns a form of a DER Name that is the same for equivalent names (RFC 5280, 7.1): the
// attributes of one RDN in any order, values in any string type, in any case, with any amount of
// white space. Two different names may have the same form: it only serves to find possible issuers
// of a certificate, and the signature decides. A name that is malformed is its own form.
func canonical(name []byte) string {
	out := make([]byte, 1, 32+len(name))
	out[0] = 'n'
	ok := walkName(name, func(rdn []attribute) {
		out = binary.AppendUvarint(out, uint64(len(rdn)))
		if len(rdn) == 1 {
			out = rdn[0].appendCanonical(out)
			return
		}
		forms := make([][]byte, len(rdn))
		for i, a := range rdn {
			forms[i] = a.appendCanonical(nil)
		}
		slices.SortFunc(forms, bytes.Compare)
		for _, form := range forms {
			out = append(out, form...)
		}
	})
	if !ok {
		return "?" + string(name)
	}
	return string(out)
}

// appendCanonical appends the attribute's form, which is self-delimiting. A value that is not text,
// or not valid for its type, is compared byte by byte.
func (a attribute) appendCanonical(out []byte) []byte {
	out = binary.AppendUvarint(out, uint64(len(a.oid)))
	out = append(out, a.oid...)
	text, ok := a.text()
	if !ok {
		out = append(out, 'b', byte(a.tag))
		out = binary.AppendUvarint(out, uint64(len(a.value)))
		return append(out, a.value...)
	}
	// Folded text holds no zero byte.
	return append(appendFolded(append(out, 't'), text), 0)
}

// text decodes the attribute's value into UTF-8. It may return the value itself.
func (a attribute) text() ([]byte, bool) {
	switch a.tag {
	case asn1.UTF8String, asn1.PrintableString, asn1.IA5String, numericString, visibleString:
		return a.value, utf8.Valid(a.value)
	case asn1.T61String:
		// Read as ISO 8859-1, as it is written in practice.
		out := make([]byte, 0, len(a.value))
		for _, b := range a.value {
			out = utf8.AppendRune(out, rune(b))
		}
		return out, true
	case bmpString:
		return decodeBMP(a.value)
	case universalString:
		return decodeUniversal(a.value)
	}
	return nil, false
}

// decodeBMP decodes a BMPString, which is big-endian UTF-16.
func decodeBMP(b []byte) ([]byte, bool) {
	if len(b)%2 != 0 {
		return nil, false
	}
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) > 0; b = b[2:] {
		units = append(units, binary.BigEndian.Uint16(b))
	}
	var out []byte
	for _, r := range utf16.Decode(units) {
		if r == utf8.RuneError {
			return nil, false
		}
		out = utf8.AppendRune(out, r)
	}
	return out, true
}

// decodeUniversal decodes a UniversalString, which is big-endian UTF-32.
func decodeUniversal(b []byte) ([]byte, bool) {
	if len(b)%4 != 0 {
		return nil, false
	}
	out := make([]byte, 0, len(b)/4)
	for ; len(b) > 0; b = b[4:] {
		v := binary.BigEndian.Uint32(b)
		if v > unicode.MaxRune || !utf8.ValidRune(rune(v)) {
			return nil, false
		}
		out = utf8.AppendRune(out, rune(v))
	}
	return out, true
}

// appendFolded appends UTF-8 text prepared for caseIgnoreMatch (RFC 4518, 2) as far as names of CAs
// need it: case is folded, white space at the ends is removed and elsewhere reduced to one space,
// and control and formatting characters are removed. Characters are not normalized to a Unicode
// form.
func appendFolded(out, text []byte) []byte {
	begin, space := len(out), false
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		text = text[size:]
		switch {
		case unicode.IsSpace(r):
			space = true
			continue
		case unicode.IsControl(r), r >= utf8.RuneSelf && unicode.Is(unicode.Cf, r):
			continue
		}
		if space && len(out) > begin {
			out = append(out, ' ')
		}
		space = false
		out = utf8.AppendRune(out, foldRune(r))
	}
	return out
}

// foldRune returns the same rune, the smallest, for all runes that differ only in case.
func foldRune(r rune) rune {
	if 'a' <= r && r <= 'z' {
		return r - 'a' + 'A'
	}
	if r < utf8.RuneSelf {
		return r
	}
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	return least
}
