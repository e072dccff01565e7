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
func parse(der []byte, form func(name []byte) string) (*List, error) {
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
	l := &List{
		signed: signed, signature: signature[1:], algorithm: algorithmOf(outer), entries: make(map[string][]uint32),
	}
	others, err := l.parseSigned(outer, form)
	if err != nil {
		return nil, err
	}
	if others && !l.scope.indirect {
		return nil, errors.New("it has an entry for a certificate of another CA, but is not an indirect list")
	}
	if l.algorithm == x509.UnknownSignatureAlgorithm {
		return nil, errors.New("it is signed with an algorithm that is too weak or unknown")
	}
	return l, nil
}

// parseSigned reads the TBSCertList (RFC 5280, 5.1.2) and reports whether an entry
// names the issuer of its certificate.
func (l *List) parseSigned(outer []byte, form func(name []byte) string) (others bool, err error) {
	in := cryptobyte.String(l.signed)
	var tbs, inner, issuer cryptobyte.String
	version := int64(0)
	if !in.ReadASN1(&tbs, asn1.SEQUENCE) {
		return false, errors.New("not a list")
	}
	if tbs.PeekASN1Tag(asn1.INTEGER) && (!tbs.ReadASN1Integer(&version) || version != 1) {
		return false, errors.New("it is of a version other than 1 and 2")
	}
	if !tbs.ReadASN1Element(&inner, asn1.SEQUENCE) || !bytes.Equal(inner, outer) {
		return false, errors.New("it names two different signature algorithms")
	}
	if !tbs.ReadASN1Element(&issuer, asn1.SEQUENCE) {
		return false, errors.New("it names no issuer")
	}
	l.RawIssuer, l.own = issuer, form(issuer)
	if !readTime(&tbs, &l.ThisUpdate) {
		return false, errors.New("it does not say when it was issued")
	}
	if isTime(tbs) && !readTime(&tbs, &l.NextUpdate) {
		return false, errors.New("its next update is not a valid time")
	}
	if tbs.PeekASN1Tag(asn1.SEQUENCE) {
		if others, err = l.parseEntries(&tbs, form); err != nil {
			return false, err
		}
	}
	if tbs.Empty() {
		return others, nil
	}
	return others, l.parseExtensions(tbs)
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

// maxIssuers is the maximum number of CAs whose certificates one list revokes.
const maxIssuers = 4096

// parseEntries reads the revoked certificates. tbs is the rest of the TBSCertList. It reports
// whether an entry names the issuer of its certificate.
func (l *List) parseEntries(tbs *cryptobyte.String, form func(name []byte) string) (others bool, err error) {
	var all cryptobyte.String
	if !tbs.ReadASN1(&all, asn1.SEQUENCE) {
		return false, errors.New("its entries are malformed")
	}
	end := len(l.signed) - len(*tbs) // offset in signed of the end of the entries
	issuer := l.own
	for n := 1; !all.Empty(); n++ {
		var entry cryptobyte.String
		if !all.ReadASN1(&entry, asn1.SEQUENCE) {
			return false, fmt.Errorf("entry %d is malformed", n)
		}
		at := end - len(all) - len(entry)
		removed, named, err := readEntry(entry)
		if err != nil {
			return false, fmt.Errorf("entry %d %w", n, err)
		}
		if named != nil {
			issuer, others = form(named), true
		}
		if !removed {
			l.entries[issuer] = append(l.entries[issuer], uint32(at+1))
		}
		if len(l.entries) > maxIssuers {
			return false, fmt.Errorf("it revokes certificates of more than %d CAs", maxIssuers)
		}
	}
	for name, entries := range l.entries {
		slices.SortFunc(entries, func(a, b uint32) int { return bytes.Compare(l.serialAt(a), l.serialAt(b)) })
		l.entries[name] = slices.Clip(entries)
	}
	return others, nil
}

// readEntry reads one entry, which begins with the serial number.
func readEntry(entry cryptobyte.String) (removed bool, issuer []byte, err error) {
	var serial, date cryptobyte.String
	var tag asn1.Tag
	// The length is one byte: 127 are more than RFC 5280, 4.1.2.2 allows.
	if !entry.ReadASN1(&serial, asn1.INTEGER) || !minimal(serial) || len(serial) > 127 {
		return false, nil, errors.New("has a serial number that is malformed or too long")
	}
	if !isTime(entry) || !entry.ReadAnyASN1(&date, &tag) {
		return false, nil, errors.New("has no date")
	}
	if removed, issuer, err = readEntryExtensions(entry); err != nil {
		return false, nil, fmt.Errorf("cannot be used: %w", err)
	}
	return removed, issuer, nil
}

// minimal reports whether b is the content of a DER INTEGER.
func minimal(b []byte) bool {
	if len(b) < 2 {
		return len(b) == 1
	}
	sign := b[1] & 0x80
	return (b[0] != 0 || sign != 0) && (b[0] != 0xff || sign == 0)
}
