package ekca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// An entry is a certificate with its place in its file, counted from 1.
type entry struct {
	cert   *x509.Certificate
	number int
}

const pemBegin = "-----BEGIN"

// errNoCertificate is the error of a file of which the notes say why nothing is
// left.
var errNoCertificate = errors.New("contains no usable certificate")

// parseFile returns the certificates in a CA file, which is PEM where it holds
// the beginning of a PEM block and DER otherwise, with notes on what it has left
// out. The error says why the file cannot be used at all: it holds no
// certificate, or it is damaged, and then nothing in it is used.
func parseFile(data []byte) (entries []entry, notes []string, err error) {
	if bytes.Contains(data, []byte(pemBegin)) {
		entries, notes, err = parsePEM(data)
	} else {
		entries, err = parseDER(data)
	}
	if err == nil && len(entries) == 0 {
		err = errNoCertificate
	}
	return entries, notes, err
}

func parseDER(data []byte) ([]entry, error) {
	const sequence = 0x30
	if len(data) == 0 || data[0] != sequence {
		return nil, errors.New("contains no certificate in PEM or DER")
	}
	certs, err := x509.ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("contains no certificate in DER: %w", err)
	}
	entries := make([]entry, len(certs))
	for i, c := range certs {
		entries[i] = entry{cert: c, number: i + 1}
	}
	return entries, nil
}

// parsePEM refuses a file in which a block has been begun that cannot be
// decoded, since it may have been cut off, and leaves out complete blocks that
// are no certificate.
func parsePEM(data []byte) (entries []entry, notes []string, err error) {
	blocks, err := smallfile.Blocks(data)
	if err != nil {
		return nil, nil, err
	}
	certs := 0
	for _, block := range blocks {
		switch {
		case block.Type == "CERTIFICATE" || block.Type == "X509 CERTIFICATE":
			certs++
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				notes = append(notes, fmt.Sprintf("certificate %d cannot be parsed: %v", certs, err))
				continue
			}
			entries = append(entries, entry{cert: cert, number: certs})
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			notes = append(notes, "contains a private key, which does not belong there: remove it")
		default:
			notes = append(notes, fmt.Sprintf("contains a PEM block of type %q, which is not used", block.Type))
		}
	}
	return entries, notes, nil
}
