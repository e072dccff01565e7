package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/pkcs7"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// An Entry is a certificate and its position in its file, from 1.
type Entry struct {
	Certificate *x509.Certificate
	Number      int
}

// MaxCertificates is the maximum number of CA certificates in a file.
const MaxCertificates = 10_000

const pemBegin = "-----BEGIN"

// ErrNoCertificate is the error for a file without usable certificates. The notes say why none is
// usable.
var ErrNoCertificate = errors.New("contains no usable certificate")

// ParseFile returns the certificates in a CA file: single ones or PKCS #7 bundles, in PEM if the
// file contains the beginning of a PEM block, and in DER otherwise. The notes describe what it has
// left out. An error means that the file cannot be used at all: it has no certificate, or it is
// damaged.
func ParseFile(data []byte) (entries []Entry, notes []string, err error) {
	return readCertificates(data, MaxCertificates)
}

// readCertificates is ParseFile with bundles of at most most certificates.
func readCertificates(data []byte, most int) (entries []Entry, notes []string, err error) {
	p := parsed{most: most}
	if bytes.Contains(data, []byte(pemBegin)) {
		err = p.readPEM(data)
	} else {
		err = p.readDER(data)
	}
	if err != nil {
		return nil, nil, err
	}
	if len(p.entries) == 0 {
		err = ErrNoCertificate
	}
	return p.entries, p.notes, err
}

// parsed is what was read from a CA file.
type parsed struct {
	entries []Entry
	notes   []string
	count   int // of certificates, including those that cannot be parsed
	most    int // in a bundle
}

func (p *parsed) note(format string, args ...any) {
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
}

// add adds certificates in DER, except for those that cannot be parsed.
func (p *parsed) add(all ...[]byte) {
	for _, der := range all {
		p.count++
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			p.note("certificate %d cannot be parsed: %v", p.count, err)
			continue
		}
		p.entries = append(p.entries, Entry{cert, p.count})
	}
}

func (p *parsed) readDER(data []byte) error {
	if len(data) == 0 || data[0] != derSequence {
		return errors.New("contains no certificate in PEM or DER")
	}
	certs, rest, err := certificatesInDER(data, p.most)
	if err != nil {
		return fmt.Errorf("contains no certificate in DER: %w", err)
	}
	p.add(certs...)
	if len(rest) > 0 {
		p.note("the last %d bytes, behind certificate %d, are no certificate and are not read", len(rest), p.count)
	}
	return nil
}

// readPEM reads a file in PEM. It refuses a file with a block that begins but cannot be decoded,
// since the file may have been cut off, and skips complete blocks without a certificate.
func (p *parsed) readPEM(data []byte) error {
	blocks, err := smallfile.Blocks(data)
	if err != nil {
		return err
	}
	for _, block := range blocks {
		switch {
		case block.Type == "CERTIFICATE" || block.Type == "X509 CERTIFICATE":
			p.add(block.Bytes)
		case block.Type == "PKCS7" || block.Type == "CMS": // RFC 7468, 8 and 9
			certs, err := pkcs7.Certificates(block.Bytes, p.most)
			if err != nil {
				p.note("contains a PKCS #7 bundle that cannot be read: %v", err)
			}
			p.add(certs...)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			p.note("contains a private key, which does not belong there: remove it")
		default:
			p.note("contains a PEM block of type %q, which is not used", block.Type)
		}
	}
	return nil
}

// derSequence is the first byte of a certificate and of a PKCS #7 bundle.
const derSequence = 0x30

// padding is what may follow a certificate in DER: an editor's line break, or the bytes with which
// a memory is filled.
const padding = " \t\r\n\x00\xff"

// certificatesInDER returns the certificates at the beginning of data, in DER one after another or
// in PKCS #7 bundles, and what follows the last one, without padding: DER says where it ends (ITU-T
// X.690, 8.1.3). It does not parse them. A certificate that is cut off is an error, and so are more
// than most.
func certificatesInDER(data []byte, most int) (certs [][]byte, rest []byte, err error) {
	for rest = data; len(rest) > 0 && rest[0] == derSequence; rest = bytes.TrimLeft(rest, padding) {
		var whole asn1.RawValue
		next, err := asn1.Unmarshal(rest, &whole)
		if err != nil && len(certs) == 0 { // indefinite length, so it is not a certificate
			certs, err = pkcs7.Certificates(rest, most)
			return certs, nil, err
		}
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		found := [][]byte{whole.FullBytes}
		if bytes.HasPrefix(whole.Bytes, []byte{asn1.TagOID}) {
			if found, err = pkcs7.Certificates(whole.FullBytes, most); err != nil {
				return nil, nil, err
			}
		}
		if certs = append(certs, found...); len(certs) > most {
			return nil, nil, fmt.Errorf("more than %d certificates", most)
		}
		rest = next
	}
	return certs, rest, nil
}
