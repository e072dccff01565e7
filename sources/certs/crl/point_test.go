package crl_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/crl"
)

func certificateWith(points []byte) *x509.Certificate {
	return &x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 31}, Value: points}}}
}

// Intel's on-die CAs: whoever takes their CRL for one of the issuer's never checks it.
func TestPointsOfIntelsCAs(t *testing.T) {
	for name, want := range map[string]string{
		"tgl-1-ptt.der": "OnDie CA CSME Intermediate CA", "tgl-2-kernel.der": "OnDie CA CSME Intermediate CA", "tgl-3-rom.der": "",
	} {
		der, err := os.ReadFile(filepath.Join(attestortest.MoreFieldCertificates(t), "odca", name))
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		points, err := crl.PointsOf(c)
		if err != nil || len(points) != 1 || points[0].SomeReasons || len(points[0].URLs) != 1 {
			t.Fatalf("%s: %+v, %v", name, points, err)
		}
		if !strings.HasPrefix(points[0].URLs[0], "https://tsci.intel.com/content/OnDieCA/crls/") ||
			(points[0].Issuer == nil) != (want == "") || !bytes.Contains(points[0].Issuer, []byte(want)) {
			t.Errorf("%s: %+v", name, points[0])
		}
	}
}

// A part of a distribution point that is not understood may say which CA issues the CRL.
func TestBadPoints(t *testing.T) {
	url := context(0x86, []byte("http://x.test/crl")...)
	full := func(b []byte) []byte { return context(0xa0, context(0xa0, b...)...) }
	dn := context(0xa4, sequence()...)
	for name, value := range map[string][]byte{
		"nothing":             nil,
		"not a sequence":      {5, 0},
		"more behind":         append(sequence(sequence(full(url))), 0),
		"an unknown field":    sequence(sequence(full(url), context(0x83, 0))),
		"a URL cut off":       sequence(sequence(full(url[:5]))),
		"two issuers":         sequence(sequence(full(url), context(0xa2, append(dn, dn...)...))),
		"no issuer":           sequence(sequence(full(url), context(0xa2))),
		"an issuer by e-mail": sequence(sequence(full(url), context(0xa2, context(0x81, 'a')...))),
	} {
		if points, err := crl.PointsOf(certificateWith(value)); err == nil || points != nil {
			t.Errorf("%s: %+v, %v", name, points, err)
		}
	}
	for name, c := range map[string]struct {
		value []byte
		want  crl.Point
	}{
		"a URL":        {sequence(sequence(full(url))), crl.Point{URLs: []string{"http://x.test/crl"}}},
		"a directory":  {sequence(sequence(full(dn))), crl.Point{}},
		"relative":     {sequence(sequence(context(0xa0, context(0xa1)...))), crl.Point{}},
		"some reasons": {sequence(sequence(full(url), context(0x81, 1, 2))), crl.Point{URLs: []string{"http://x.test/crl"}, SomeReasons: true}},
		"an issuer":    {sequence(sequence(full(url), context(0xa2, dn...))), crl.Point{URLs: []string{"http://x.test/crl"}, Issuer: sequence()}},
	} {
		points, err := crl.PointsOf(certificateWith(c.value))
		if err != nil || len(points) != 1 || len(points[0].URLs) != len(c.want.URLs) ||
			!bytes.Equal(points[0].Issuer, c.want.Issuer) || points[0].SomeReasons != c.want.SomeReasons {
			t.Errorf("%s: %+v, %v", name, points, err)
		}
	}
	if points, err := crl.PointsOf(&x509.Certificate{}); err != nil || points != nil {
		t.Errorf("none: %+v, %v", points, err)
	}
}

// No bytes in a certificate stop the reader, and all that it returns was there.
func FuzzPoints(f *testing.F) {
	f.Add(sequence(sequence(context(0xa0, context(0xa0, context(0x86, 'x')...)...), context(0xa2, context(0xa4, sequence()...)...))))
	f.Fuzz(func(t *testing.T, value []byte) {
		points, err := crl.PointsOf(certificateWith(value))
		if err != nil && points != nil {
			t.Error("points beside an error")
		}
		size := 0
		for _, p := range points {
			size += len(p.Issuer)
			for _, u := range p.URLs {
				size += len(u)
			}
		}
		if size > len(value) {
			t.Errorf("%d bytes of %d", size, len(value))
		}
	})
}
