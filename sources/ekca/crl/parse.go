package crl

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// parse reads a CertificateList (RFC 5280, 5.1).
func parse(der []byte) (*List, error) {
	in := cryptobyte.String(der)
	var whole, signed, outer, signature cryptobyte.String
	if !in.ReadASN1(&whole, asn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("not one sequence in DER")
	}
	if !whole.ReadASN1Element(&signed, asn1.SEQUENCE) ||
		!whole.ReadASN1Element(&outer, asn1.SEQUENCE) ||
		!whole.ReadASN1(&signature, asn1.BIT_STRING) || !whole.Empty() ||
		len(signature) < 2 || signature[0] != 0 {
		return nil, errors.New("not a signed list")
	}
	l := &List{signed: signed, signature: signature[1:], algorithm: algorithmOf(outer)}
	if err := l.parseSigned(outer); err != nil {
		return nil, err
	}
	if l.algorithm == x509.UnknownSignatureAlgorithm {
		return nil, errors.New("it is signed with an algorithm that is too weak or unknown")
	}
	return l, nil
}

// parseSigned reads the TBSCertList (RFC 5280, 5.1.2).
func (l *List) parseSigned(outer []byte) error {
	in := cryptobyte.String(l.signed)
	var tbs, inner, issuer cryptobyte.String
	version := int64(0)
	if !in.ReadASN1(&tbs, asn1.SEQUENCE) {
		return errors.New("not a list")
	}
	if tbs.PeekASN1Tag(asn1.INTEGER) && (!tbs.ReadASN1Integer(&version) || version != 1) {
		return errors.New("it is of a version other than 1 and 2")
	}
	if !tbs.ReadASN1Element(&inner, asn1.SEQUENCE) || !bytes.Equal(inner, outer) {
		return errors.New("it names two different signature algorithms")
	}
	if !tbs.ReadASN1Element(&issuer, asn1.SEQUENCE) {
		return errors.New("it names no issuer")
	}
	l.RawIssuer = issuer
	if !readTime(&tbs, &l.ThisUpdate) {
		return errors.New("it does not say when it was issued")
	}
	if isTime(tbs) && !readTime(&tbs, &l.NextUpdate) {
		return errors.New("its next update is not a valid time")
	}
	if tbs.PeekASN1Tag(asn1.SEQUENCE) {
		if err := l.parseEntries(&tbs); err != nil {
			return err
		}
	}
	if tbs.Empty() {
		return nil
	}
	return l.parseExtensions(tbs)
}

func isTime(s cryptobyte.String) bool {
	return s.PeekASN1Tag(asn1.UTCTime) || s.PeekASN1Tag(asn1.GeneralizedTime)
}

func readTime(s *cryptobyte.String, out *time.Time) bool {
	if s.PeekASN1Tag(asn1.UTCTime) {
		return s.ReadASN1UTCTime(out)
	}
	return s.ReadASN1GeneralizedTime(out)
}

// parseEntries reads the revoked certificates. tbs is what is left of the list.
func (l *List) parseEntries(tbs *cryptobyte.String) error {
	var all cryptobyte.String
	if !tbs.ReadASN1(&all, asn1.SEQUENCE) {
		return errors.New("its entries are malformed")
	}
	end := len(l.signed) - len(*tbs) // of all, in what is signed
	for n := 1; !all.Empty(); n++ {
		var entry, serial, date cryptobyte.String
		var tag asn1.Tag
		if !all.ReadASN1(&entry, asn1.SEQUENCE) {
			return fmt.Errorf("entry %d is malformed", n)
		}
		at := end - len(all) - len(entry)
		// The length is one byte: 127 are more than RFC 5280, 4.1.2.2 allows.
		if !entry.ReadASN1(&serial, asn1.INTEGER) || !minimal(serial) || len(serial) > 127 {
			return fmt.Errorf("entry %d has a serial number that is malformed or too long", n)
		}
		if !isTime(entry) || !entry.ReadAnyASN1(&date, &tag) {
			return fmt.Errorf("entry %d has no date", n)
		}
		removed, err := readEntryExtensions(entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if !removed {
			l.entries = append(l.entries, uint32(at+1))
		}
	}
	slices.SortFunc(l.entries, func(a, b uint32) int { return bytes.Compare(l.serialAt(a), l.serialAt(b)) })
	l.entries = slices.Clip(l.entries)
	return nil
}

// minimal reports whether b is the content of a DER INTEGER.
func minimal(b []byte) bool {
	if len(b) < 2 {
		return len(b) == 1
	}
	sign := b[1] & 0x80
	return (b[0] != 0 || sign != 0) && (b[0] != 0xff || sign == 0)
}
