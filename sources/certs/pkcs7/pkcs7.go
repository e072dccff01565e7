// Package pkcs7 reads the certificates in a PKCS #7 bundle, in which some CAs publish the issuers
// of their certificates (RFC 5280, 4.2.2.1: a "certs-only" CMS message; RFC 2315, 9.1; RFC 5652,
// 5.1).
//
// Nothing else in a bundle is read, not even its signatures: what a certificate is worth depends on
// who has signed the certificate.
package pkcs7

import (
	"bytes"
	"errors"
	"fmt"
)

// maxDepth limits the nesting of elements of indefinite length.
const maxDepth = 16

// Tags of the elements of a bundle, with their class and form.
const (
	tagInteger  = 0x02
	tagOID      = 0x06
	tagSequence = 0x30
	tagSet      = 0x31
	tagContent  = 0xa0 // [0], both of ContentInfo and of SignedData
)

// signedData is the content type 1.2.840.113549.1.7.2.
const signedData = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"

// Certificates returns the certificates in a bundle, in DER and in their order. The bundle is DER,
// or BER with elements of indefinite length. The certificates are slices of b and have not been
// parsed. A bundle with no certificates or with more than most, and anything that is not a bundle,
// is an error.
func Certificates(b []byte, most int) ([][]byte, error) {
	data, err := unwrap(b)
	if err != nil {
		return nil, err
	}
	version, data, err := next(data, maxDepth)
	if err != nil || version.tag != tagInteger {
		return nil, errors.New("read a PKCS #7 bundle: no version")
	}
	for _, field := range []struct {
		tag  byte
		what string
	}{{tagSet, "digest algorithms"}, {tagSequence, "content"}} {
		var e element
		if e, data, err = next(data, maxDepth); err != nil || e.tag != field.tag {
			return nil, fmt.Errorf("read a PKCS #7 bundle: no %s", field.what)
		}
	}
	certificates, _, err := next(data, maxDepth)
	if err != nil {
		return nil, fmt.Errorf("read a PKCS #7 bundle: %w", err)
	}
	if certificates.tag != tagContent {
		return nil, errors.New("read a PKCS #7 bundle: it holds no certificates")
	}
	return collect(certificates.content, most)
}

// unwrap returns the content of the SignedData in a ContentInfo.
func unwrap(b []byte) ([]byte, error) {
	info, rest, err := next(b, maxDepth)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read a PKCS #7 bundle: %w", err)
	case info.tag != tagSequence || len(rest) > 0:
		return nil, errors.New("read a PKCS #7 bundle: not one sequence")
	}
	kind, rest, err := next(info.content, maxDepth)
	if err != nil || kind.tag != tagOID || string(kind.content) != signedData {
		return nil, errors.New("read a PKCS #7 bundle: not signed data")
	}
	explicit, rest, err := next(rest, maxDepth)
	if err != nil || explicit.tag != tagContent || len(rest) > 0 {
		return nil, errors.New("read a PKCS #7 bundle: no content")
	}
	data, rest, err := next(explicit.content, maxDepth)
	if err != nil || data.tag != tagSequence || len(rest) > 0 {
		return nil, errors.New("read a PKCS #7 bundle: no signed data in it")
	}
	return data.content, nil
}

// collect returns the certificates in a CertificateSet. It skips its other choices, such as
// attribute certificates.
func collect(set []byte, most int) ([][]byte, error) {
	var out [][]byte
	for len(set) > 0 {
		e, rest, err := next(set, maxDepth)
		if err != nil {
			return nil, fmt.Errorf("read a PKCS #7 bundle: certificate %d: %w", len(out)+1, err)
		}
		if e.tag == tagSequence {
			if len(out) == most {
				return nil, fmt.Errorf("read a PKCS #7 bundle: it holds more than %d certificates", most)
			}
			out = append(out, e.whole)
		}
		set = rest
	}
	if len(out) == 0 {
		return nil, errors.New("read a PKCS #7 bundle: it holds no certificates")
	}
	return out, nil
}

// element is one BER element (ITU-T X.690, 8.1).
type element struct {
	tag     byte
	content []byte // without the end-of-contents octets
	whole   []byte
}

var (
	errCut    = errors.New("cut off")
	errLength = errors.New("a length that is too long")
)

// next reads the element at the beginning of b. It does not look at what is inside, except that
// elements of indefinite length must be traversed, at most depth levels deep.
func next(b []byte, depth int) (e element, rest []byte, err error) {
	if len(b) < 2 {
		return element{}, nil, errCut
	}
	tag, length := b[0], b[1]
	const highTag, constructed, indefinite, long = 0x1f, 0x20, 0x80, 0x80
	if tag&highTag == highTag {
		return element{}, nil, errors.New("a tag of several bytes")
	}
	switch {
	case length == indefinite && tag&constructed == 0:
		return element{}, nil, errors.New("a primitive element of indefinite length")
	case length == indefinite:
		return nextIndefinite(b, depth)
	case length < long:
		return cut(b, 2, int(length))
	}
	octets := int(length - long)
	if octets > 3 { // 16 MiB, more than is ever read
		return element{}, nil, errLength
	}
	if len(b) < 2+octets {
		return element{}, nil, errCut
	}
	size := 0
	for _, c := range b[2 : 2+octets] {
		size = size<<8 | int(c)
	}
	return cut(b, 2+octets, size)
}

// cut returns the element at the beginning of b, given the sizes of its header and content.
func cut(b []byte, header, size int) (e element, rest []byte, err error) {
	if size > len(b)-header {
		return element{}, nil, errCut
	}
	end := header + size
	return element{tag: b[0], content: b[header:end:end], whole: b[:end:end]}, b[end:], nil
}

// nextIndefinite reads an element of indefinite length, which ends with two zero
// bytes in the place of an element (X.690, 8.1.5).
func nextIndefinite(b []byte, depth int) (e element, rest []byte, err error) {
	if depth == 0 {
		return element{}, nil, errors.New("elements of indefinite length nested too deep")
	}
	const header = 2
	end := []byte{0, 0}
	inside := b[header:]
	for !bytes.HasPrefix(inside, end) {
		if _, inside, err = next(inside, depth-1); err != nil {
			return element{}, nil, err
		}
	}
	size := len(b) - header - len(inside)
	e, _, _ = cut(b, header, size)
	e.whole = b[:header+size+len(end)]
	return e, inside[len(end):], nil
}
