package certs

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
)

const (
	tagUTF8      = 12
	tagPrintable = 19
	tagT61       = 20
	tagIA5       = 22
	tagUniversal = 28
	tagBMP       = 30
)

type pair struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

func attr(id, tag int, value string) pair {
	return pair{asn1.ObjectIdentifier{2, 5, 4, id}, asn1.RawValue{Tag: tag, Bytes: []byte(value)}}
}

// dn returns a DER Name. The attributes of one RDN stay in the given order, which
// need not be that of DER.
func dn(tb testing.TB, rdns ...[]pair) []byte {
	tb.Helper()
	var sets []asn1.RawValue
	for _, rdn := range rdns {
		var set []byte
		for _, p := range rdn {
			der, err := asn1.Marshal(p)
			if err != nil {
				tb.Fatal(err)
			}
			set = append(set, der...)
		}
		sets = append(sets, asn1.RawValue{Tag: asn1.TagSet, IsCompound: true, Bytes: set})
	}
	der, err := asn1.Marshal(sets)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// Which names are the same CA's (RFC 5280, 7.1). Taking two equal names for different ones hides a
// chain; the reverse only costs a signature check.
func TestCanonical(t *testing.T) {
	one := func(tag int, value string) []byte { return dn(t, []pair{attr(3, tag, value)}) }
	for name, c := range map[string]struct {
		a, b []byte
		same bool
	}{
		"string types":    {one(tagUTF8, "AMDTPM"), one(tagPrintable, "AMDTPM"), true},
		"BMP":             {one(tagUTF8, "AΩ"), one(tagBMP, "\x00A\x03\xa9"), true},
		"BMP, surrogates": {one(tagUTF8, "😀"), one(tagBMP, "\xd8\x3d\xde\x00"), true},
		"universal":       {one(tagUTF8, "A😀"), one(tagUniversal, "\x00\x00\x00A\x00\x01\xf6\x00"), true},
		"T61":             {one(tagUTF8, "Zürich"), one(tagT61, "Z\xfcrich"), true},
		"case":            {one(tagUTF8, "ZÜRICH Kelvin"), one(tagUTF8, "zürich \u212aelvin"), true},
		"white space":     {one(tagUTF8, "a b"), one(tagIA5, "  a \t\n b "), true},
		"soft hyphen":     {one(tagUTF8, "ab"), one(tagUTF8, "a\u00adb"), true},
		"order in an RDN": {
			dn(t, []pair{attr(6, tagPrintable, "TW"), attr(3, tagUTF8, "CA")}),
			dn(t, []pair{attr(3, tagUTF8, "CA"), attr(6, tagPrintable, "TW")}),
			true,
		},

		"values":          {one(tagUTF8, "a"), one(tagUTF8, "b"), false},
		"space in a word": {one(tagUTF8, "a b"), one(tagUTF8, "ab"), false},
		"attributes":      {dn(t, []pair{attr(3, tagUTF8, "a")}), dn(t, []pair{attr(4, tagUTF8, "a")}), false},
		"order of RDNs": {
			dn(t, []pair{attr(3, tagUTF8, "a")}, []pair{attr(4, tagUTF8, "b")}),
			dn(t, []pair{attr(4, tagUTF8, "b")}, []pair{attr(3, tagUTF8, "a")}),
			false,
		},
		"one RDN or two": {
			dn(t, []pair{attr(3, tagUTF8, "a")}, []pair{attr(4, tagUTF8, "b")}),
			dn(t, []pair{attr(3, tagUTF8, "a"), attr(4, tagUTF8, "b")}),
			false,
		},
		"a value in another's place": {
			dn(t, []pair{attr(3, tagUTF8, "a"), attr(3, tagUTF8, "")}),
			dn(t, []pair{attr(3, tagUTF8, ""), attr(3, tagUTF8, "b")}),
			false,
		},
		"no text":          {one(asn1.TagInteger, "a"), one(tagUTF8, "a"), false},
		"half a character": {one(tagBMP, "\x00"), one(tagUTF8, ""), false},
		"no character":     {one(tagUniversal, "\x00\x11\x00\x00"), one(tagUTF8, "\ufffd"), false},
		"lone surrogate":   {one(tagBMP, "\xd8\x00"), one(tagUTF8, "\ufffd"), false},
		"3 bytes":          {one(tagUniversal, "\x00\x00A"), one(tagUTF8, "A"), false},
		"invalid UTF-8":    {one(tagUTF8, "\xff"), one(tagUTF8, "\xfe"), false},
		"no name":          {[]byte("x"), []byte("y"), false},
		"nothing, no RDN":  {nil, dn(t), false},
		"something behind": {append(one(tagUTF8, "a"), 0), one(tagUTF8, "a"), false},
		"no set in it":     {[]byte{0x30, 2, 5, 0}, []byte{0x30, 0}, false},
		"no pair in it":    {[]byte{0x30, 4, 0x31, 2, 5, 0}, []byte{0x30, 2, 0x31, 0}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := canonical(c.a) == canonical(c.b); got != c.same {
				t.Errorf("same is %v: %q, %q", got, canonical(c.a), canonical(c.b))
			}
			if canonical(c.a) != canonical(bytes.Clone(c.a)) {
				t.Error("not the same as itself")
			}
		})
	}
}

// Any name is itself whatever is in it, and a name that Go writes is the same
// with its values in capitals.
func FuzzName(f *testing.F) {
	f.Add([]byte{0x30, 0}, "CA", "Vendor")
	f.Add([]byte{0x30, 4, 0x31, 2, 5, 0}, "ß", " \t")
	f.Add(dn(f, []pair{attr(3, tagBMP, "\xd8\x00"), attr(3, tagT61, "\xff")}), "\u212a", "İ")
	f.Fuzz(func(t *testing.T, raw []byte, cn, org string) {
		if canonical(raw) != canonical(bytes.Clone(raw)) {
			t.Error("not the same as itself")
		}
		if tpm, ok := readAltName(raw); ok {
			for _, n := range []tpmName{tpm.manufacturer, tpm.model, tpm.version} {
				if n.text != Presentable("", n.text) {
					t.Errorf("no selector: %q", n.text)
				}
			}
		}
		name := func(cn, org string) (string, bool) {
			der, err := asn1.Marshal(pkix.Name{CommonName: cn, Organization: []string{org}}.ToRDNSequence())
			return canonical(der), err == nil
		}
		upper := func(s string) string { return string(bytes.Map(upperASCII, []byte(s))) }
		a, ok := name(cn, org)
		if cn != "" { // Go leaves an empty one out
			cn = "  " + cn + " "
		}
		b, _ := name(upper(cn), upper(org))
		if ok && a != b {
			t.Errorf("%q and %q in capitals: %q, %q", cn, org, a, b)
		}
	})
}

func upperASCII(r rune) rune {
	if 'a' <= r && r <= 'z' {
		return r - 'a' + 'A'
	}
	return r
}
