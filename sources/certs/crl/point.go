package crl

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// A Point is a distribution point in a certificate (RFC 5280, 4.2.1.13): where its CRL is, and
// which CA issues that CRL.
type Point struct {
	// URLs are the URLs of the CRL, with any scheme; none if the point is named in another way.
	URLs []string
	// Issuer is the name, in DER, of the CA that issues the CRL. It is nil if that is
	// the issuer of the certificate.
	Issuer []byte
	// SomeReasons is true if the CRL covers only some of the reasons for a revocation, so that it
	// cannot show that a certificate is good.
	SomeReasons bool
}

var errPoint = errors.New("its CRL distribution points are malformed")

// PointsOf returns the distribution points of a certificate.
func PointsOf(c *x509.Certificate) ([]Point, error) {
	id := asn1.ObjectIdentifier{2, 5, 29, 31}
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return parsePoints(e.Value)
		}
	}
	return nil, nil
}

// parsePoints reads the value of a CRLDistributionPoints extension.
func parsePoints(value []byte) ([]Point, error) {
	in := cryptobyte.String(value)
	var all cryptobyte.String
	if !in.ReadASN1(&all, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errPoint
	}
	var points []Point
	for !all.Empty() {
		var one cryptobyte.String
		if !all.ReadASN1(&one, cbasn1.SEQUENCE) {
			return nil, errPoint
		}
		p, err := parsePoint(one)
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

// parsePoint reads the fields of a DistributionPoint.
func parsePoint(in cryptobyte.String) (Point, error) {
	var p Point
	var name, reasons, issuer cryptobyte.String
	var named, some, other bool
	context := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific() }
	if !in.ReadOptionalASN1(&name, &named, context(0).Constructed()) ||
		!in.ReadOptionalASN1(&reasons, &some, context(1)) ||
		!in.ReadOptionalASN1(&issuer, &other, context(2).Constructed()) || !in.Empty() {
		return Point{}, errPoint
	}
	p.SomeReasons = some
	if named && name.PeekASN1Tag(context(0).Constructed()) {
		var full cryptobyte.String
		if !name.ReadASN1(&full, context(0).Constructed()) || !name.Empty() {
			return Point{}, errPoint
		}
		for !full.Empty() {
			var one cryptobyte.String
			var tag cbasn1.Tag
			if !full.ReadAnyASN1(&one, &tag) {
				return Point{}, errPoint
			}
			if tag == context(6) {
				p.URLs = append(p.URLs, string(one))
			}
		}
	}
	if other {
		names, ok := directoryNames(issuer)
		if !ok || len(names) != 1 {
			return Point{}, errors.New("the issuer of its CRL is not one directory name")
		}
		p.Issuer = names[0]
	}
	return p, nil
}
