package ekca_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
)

// Subject alternative names as vendors write them, and as somebody who wants a
// selector of another TPM, a line of his own in a log or a lot of memory would.
func TestAltNames(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	one := func(id asn1.ObjectIdentifier, v any) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: id, Value: v}
	}
	manufacturer, model := asn1.ObjectIdentifier{2, 23, 133, 2, 1}, asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	only := func(values ...any) []pkix.RDNSequence {
		var names []pkix.RDNSequence
		for _, v := range values {
			names = append(names, pkix.RDNSequence{{one(manufacturer, v)}})
		}
		return names
	}
	type want = sources.EKCertificate
	for name, c := range map[string]struct {
		names []pkix.RDNSequence
		want  want
	}{
		"an RDN each": {
			[]pkix.RDNSequence{tpmName("id:1", "m", "id:2")},
			want{Manufacturer: "id:1", Model: "m", Version: "id:2"},
		},
		"one RDN": {
			[]pkix.RDNSequence{{{one(manufacturer, "id:1"), one(model, "m")}}},
			want{Manufacturer: "id:1", Model: "m"},
		},
		"two names": {
			[]pkix.RDNSequence{{{one(manufacturer, "id:1")}}, {{one(model, "m")}}},
			want{Manufacturer: "id:1", Model: "m"},
		},
		"other names": {
			[]pkix.RDNSequence{pkix.Name{CommonName: "x"}.ToRDNSequence(), tpmName("id:1", "m", "v")},
			want{Manufacturer: "id:1", Model: "m", Version: "v"},
		},
		"twice alike":   {only("id:1", "id:1"), want{Manufacturer: "id:1"}},
		"contradiction": {only("id:1", "id:2"), want{}},
		"three times":   {only("id:1", "id:2", "id:1"), want{}},
		"empty":         {only(""), want{}},
		"unicode":       {only("Größe 1"), want{Manufacturer: "Größe 1"}},
		"242 bytes":     {only(strings.Repeat("x", 242)), want{Manufacturer: strings.Repeat("x", 242)}},
		"243 bytes":     {only(strings.Repeat("x", 243)), want{}},
		"huge":          {only(strings.Repeat("x", 6000)), want{}},
		"line feed":     {only("id:1\nlevel=info"), want{}},
		"zero byte":     {only("id:1\x00"), want{}},
		"right to left": {only("id:1\u202e"), want{}},
		"a number":      {only(5), want{}},
		"a sequence":    {only([]string{"id:1"}), want{}},
		"broken UTF-8":  {only(asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("\xff")}), want{}},
		"none":          {[]pkix.RDNSequence{}, want{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := wantListed(t, src, root.ek(t, func(x *x509.Certificate) {
				x.ExtraExtensions = []pkix.Extension{altName(t, c.names...)}
			}))
			if err := got.Validate(); err != nil {
				t.Error(err)
			}
			c.want.IssuerCN, c.want.Serial, c.want.IssuerKeyHash = "Root", "abc", got.Certificate.IssuerKeyHash
			if *got.Certificate != c.want {
				t.Errorf("got %+v, want %+v", *got.Certificate, c.want)
			}
		})
	}
}

// A critical name that cannot be read cannot be processed (RFC 5280, 4.2); where
// it is not critical, it only says nothing. None of them panics.
func TestUnreadableAltNames(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	nested := []byte{0xa4, 0}
	for range 20 {
		nested = append([]byte{0xa4, byte(len(nested))}, nested...)
	}
	for name, value := range map[string][]byte{
		"no sequence":         {0x05, 0x00},
		"cut off":             {0x30, 0x10, 0xa4},
		"something behind":    {0x30, 0x00, 0x00},
		"universal tag":       {0x30, 0x03, 0x02, 0x01, 0x01},
		"no name inside":      {0x30, 0x04, 0xa4, 0x02, 0x05, 0x00},
		"nested":              append([]byte{0x30, byte(len(nested))}, nested...),
		"length of gigabytes": {0x30, 0x84, 0x7f, 0xff, 0xff, 0xff},
		"nothing":             {},
	} {
		t.Run(name, func(t *testing.T) {
			for _, critical := range []bool{true, false} {
				template := ekTemplate(t, func(x *x509.Certificate) {
					x.ExtraExtensions = []pkix.Extension{
						{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: critical, Value: value},
					}
				})
				der, err := x509.CreateCertificate(nil, template, root.cert, certstest.NewKey(t).Public(), root.key)
				if err != nil {
					t.Fatal(err)
				}
				ek, err := x509.ParseCertificate(der)
				if err != nil {
					continue // it never gets here
				}
				v := check(t, src, ek)
				if v.Listed == critical {
					t.Errorf("critical is %v: %+v", critical, v)
				}
				if v.Listed && (v.Attributes.Certificate.Manufacturer != "" || v.Attributes.Validate() != nil) {
					t.Errorf("attributes %+v", v.Attributes.Certificate)
				}
			}
		})
	}
}

// The CA chooses the issuer's name, which may not be suitable as a selector either.
func TestIssuerCNThatIsNoSelector(t *testing.T) {
	for _, cn := range []string{"", "a\nb", strings.Repeat("x", 300)} {
		root := newRoot(t, cn)
		got := wantListed(t, trusting(t, root), root.ek(t))
		if got.Certificate.IssuerCN != "" || got.Validate() != nil {
			t.Errorf("issuer %q", got.Certificate.IssuerCN)
		}
	}
}

// Serial numbers identify a certificate together with the issuer: each has one form, or the
// certificate is refused.
func TestSerials(t *testing.T) {
	root := newRoot(t, "Root")
	src := trusting(t, root)
	for _, c := range []struct {
		serial *big.Int
		want   string
	}{
		{big.NewInt(0), "0"},
		{big.NewInt(1), "1"},
		{big.NewInt(0x0102), "102"},
		{new(big.Int).SetBytes(bytes.Repeat([]byte{0xff}, 20)), strings.Repeat("ff", 20)},
	} {
		ek := root.ek(t, func(x *x509.Certificate) { x.SerialNumber = c.serial })
		if got := wantListed(t, src, ek); got.Certificate.Serial != c.want {
			t.Errorf("serial %q, want %q", got.Certificate.Serial, c.want)
		}
	}
	long := new(big.Int).Lsh(big.NewInt(1), 1020)
	ek := root.ek(t, func(x *x509.Certificate) { x.SerialNumber = long })
	wantNotListed(t, "serial number", src, ek)
	// What the parser refuses: a negative number, and needless zeros before it.
	for _, serial := range []string{"\x02\x03\xff\x0a\xbc", "\x02\x03\x00\x0a\xbc"} {
		ev := evidence(root.ek(t))
		at := bytes.Index(ev.Certificate, []byte("\x02\x02\x0a\xbc"))
		head := append(bytes.Clone(ev.Certificate[:at]), serial...)
		ev.Certificate = append(head, ev.Certificate[at+4:]...)
		ev.Certificate[3]++ // of the length of the certificate
		ev.Certificate[7]++ // and of what is signed
		v, err := src.Check(t.Context(), ev)
		if err != nil || v.Listed {
			t.Errorf("serial %x: %+v, %v", serial, v, err)
		}
		wantText(t, v.Reason, "the EK certificate that the machine has sent cannot be read: ")
	}
}
