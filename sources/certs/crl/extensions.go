package crl

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Extensions of a CRL and of its entries (RFC 5280, 5.2 and 5.3), in DER without
// tag and length.
const (
	oidNumber            = "\x55\x1d\x14" // 2.5.29.20
	oidReason            = "\x55\x1d\x15" // 2.5.29.21
	oidDelta             = "\x55\x1d\x1b" // 2.5.29.27
	oidDistributionPoint = "\x55\x1d\x1c" // 2.5.29.28
	oidCertificateIssuer = "\x55\x1d\x1d" // 2.5.29.29
)

// scope says which certificates of its issuer a list is for (RFC 5280, 5.2.5).
type scope struct {
	onlyUsers, onlyCAs bool
	// indirect is true if there may be entries for certificates of other CAs.
	indirect bool
	// urls name its distribution point; if there are none, the list is for all distribution points.
	urls []string
}

func (s *scope) equal(other *scope) bool {
	return s.onlyUsers == other.onlyUsers && s.onlyCAs == other.onlyCAs && s.indirect == other.indirect &&
		slices.Equal(s.urls, other.urls)
}

// readExtensions calls f with each extension in DER Extensions.
func readExtensions(in cryptobyte.String, f func(oid string, critical bool, value []byte) error) error {
	var all cryptobyte.String
	if !in.ReadASN1(&all, asn1.SEQUENCE) || !in.Empty() {
		return errors.New("its extensions are malformed")
	}
	for !all.Empty() {
		var one, oid, value cryptobyte.String
		critical := false
		if !all.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) ||
			one.PeekASN1Tag(asn1.BOOLEAN) && !one.ReadASN1Boolean(&critical) ||
			!one.ReadASN1(&value, asn1.OCTET_STRING) || !one.Empty() {
			return errors.New("its extensions are malformed")
		}
		if err := f(string(oid), critical, value); err != nil {
			return err
		}
	}
	return nil
}

// readEntryExtensions reads the extensions of an entry, after its date. removed is true for an
// entry that revokes nothing (removeFromCRL). issuer is the name of the CA of this and the
// following certificates (RFC 5280, 5.3.3), nil if it is the same as before.
func readEntryExtensions(in cryptobyte.String) (removed bool, issuer []byte, err error) {
	if in.Empty() {
		return false, nil, nil
	}
	err = readExtensions(in, func(oid string, critical bool, value []byte) error {
		switch {
		case oid == oidReason:
			const removeFromCRL = 8
			reason, in := 0, cryptobyte.String(value)
			if !in.ReadASN1Enum(&reason) || !in.Empty() {
				return errors.New("its reason is malformed")
			}
			removed = reason == removeFromCRL
		case oid == oidCertificateIssuer:
			return readCertificateIssuer(value, &issuer)
		case critical:
			return fmt.Errorf("it has the critical extension %s, which is not supported", describeOID(oid))
		}
		return nil
	})
	return removed, issuer, err
}

// readCertificateIssuer reads a CertificateIssuer, which has one directory name.
func readCertificateIssuer(value []byte, issuer *[]byte) error {
	in := cryptobyte.String(value)
	var names cryptobyte.String
	if !in.ReadASN1(&names, asn1.SEQUENCE) || !in.Empty() {
		return errors.New("the issuer of its certificate is malformed")
	}
	found, ok := directoryNames(names)
	if !ok || len(found) != 1 {
		return errors.New("the issuer of its certificate is not one directory name")
	}
	*issuer = found[0]
	return nil
}

// directoryNames returns the directory names in GeneralNames, each in DER.
func directoryNames(in cryptobyte.String) (names [][]byte, ok bool) {
	for !in.Empty() {
		var one, name cryptobyte.String
		var tag asn1.Tag
		if !in.ReadAnyASN1(&one, &tag) {
			return nil, false
		}
		if tag != asn1.Tag(4).ContextSpecific().Constructed() {
			continue
		}
		if !one.ReadASN1Element(&name, asn1.SEQUENCE) || !one.Empty() {
			return nil, false
		}
		names = append(names, name)
	}
	return names, true
}

// parseExtensions reads the extensions of the list, after its entries.
func (l *List) parseExtensions(in cryptobyte.String) error {
	var explicit cryptobyte.String
	if !in.ReadASN1(&explicit, asn1.Tag(0).ContextSpecific().Constructed()) || !in.Empty() {
		return errors.New("its extensions are malformed")
	}
	seen := make(map[string]bool)
	return readExtensions(explicit, func(oid string, critical bool, value []byte) error {
		if seen[oid] {
			return fmt.Errorf("it has the extension %s twice", describeOID(oid))
		}
		seen[oid] = true
		switch {
		case oid == oidNumber:
			return l.parseNumber(value)
		case oid == oidDelta:
			return errors.New("it is a delta list, which alone says nothing")
		case oid == oidDistributionPoint:
			return l.scope.parse(value)
		case critical:
			return fmt.Errorf("it has the critical extension %s, which is not supported", describeOID(oid))
		}
		return nil
	})
}

// maxNumber is the maximum length of a CRL number in bytes: 20, and one for the sign (RFC 5280,
// 5.2.3).
const maxNumber = 21

// parseNumber reads a CRLNumber.
func (l *List) parseNumber(value []byte) error {
	in, number := cryptobyte.String(value), new(big.Int)
	const head = 2 // tag and length
	if len(value) > head+maxNumber || !in.ReadASN1Integer(number) || !in.Empty() || number.Sign() < 0 {
		return errors.New("its number is malformed or too long")
	}
	l.number = number
	return nil
}

// parse reads an IssuingDistributionPoint.
func (s *scope) parse(value []byte) error {
	in := cryptobyte.String(value)
	var all cryptobyte.String
	if !in.ReadASN1(&all, asn1.SEQUENCE) || !in.Empty() {
		return errors.New("its distribution point is malformed")
	}
	for !all.Empty() {
		var field cryptobyte.String
		var tag asn1.Tag
		if !all.ReadAnyASN1(&field, &tag) {
			return errors.New("its distribution point is malformed")
		}
		if err := s.set(tag, field); err != nil {
			return err
		}
	}
	return nil
}

// set reads one field of an IssuingDistributionPoint.
func (s *scope) set(tag asn1.Tag, field []byte) error {
	context := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific() }
	yes := len(field) == 1 && field[0] == 0xff
	switch {
	case tag == context(0).Constructed():
		return s.readName(field)
	case tag == context(1) && yes:
		s.onlyUsers = true
	case tag == context(2) && yes:
		s.onlyCAs = true
	case tag == context(3).Constructed(), tag == context(3):
		return errors.New("it is for some reasons only")
	case tag == context(4) && yes:
		s.indirect = true
	case tag == context(5) && yes:
		return errors.New("it is for attribute certificates only")
	case len(field) != 1 || field[0] != 0:
		return errors.New("its distribution point is malformed")
	}
	return nil
}

// readName reads a DistributionPointName.
func (s *scope) readName(name []byte) error {
	in := cryptobyte.String(name)
	var full cryptobyte.String
	if !in.ReadASN1(&full, asn1.Tag(0).ContextSpecific().Constructed()) || !in.Empty() {
		return errors.New("its distribution point is named in a way that is not supported")
	}
	for !full.Empty() {
		var one cryptobyte.String
		var tag asn1.Tag
		if !full.ReadAnyASN1(&one, &tag) {
			return errors.New("its distribution point is malformed")
		}
		if tag == asn1.Tag(6).ContextSpecific() {
			s.urls = append(s.urls, string(one))
		}
	}
	if len(s.urls) == 0 {
		return errors.New("its distribution point is not named by a URL")
	}
	return nil
}

// describeOID formats an object identifier for people.
func describeOID(oid string) string {
	var id x509.OID
	if err := id.UnmarshalBinary([]byte(oid)); err != nil {
		return strconv.Quote(oid)
	}
	return id.String()
}
