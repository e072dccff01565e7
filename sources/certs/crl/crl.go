// Package crl reads certificate revocation lists (RFC 5280, 5) and keeps them small in memory: a
// list takes its own size and four bytes for each entry.
package crl

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// MaxSize is the maximum size of a list, in bytes.
const MaxSize = 4 << 20

// List is a full CRL, in one of the forms of RFC 5280 that say, for every certificate in its scope,
// whether it is revoked. It is safe for concurrent use.
type List struct {
	// RawIssuer is the name, in DER, of the CA that issued it.
	RawIssuer []byte
	// ThisUpdate is when it was issued. NextUpdate is when the next one will have been issued; zero
	// if the list does not say.
	ThisUpdate, NextUpdate time.Time

	number    *big.Int // the CRL number; nil if there is none
	scope     scope
	algorithm x509.SignatureAlgorithm
	signed    []byte // the part that is signed
	signature []byte
	// own is the canonical form of the issuer's name.
	own string
	// entries are the offsets in signed of the serial numbers, each at its length, sorted by
	// serialAt. They are grouped by the canonical name of the certificates' issuer.
	entries map[string][]uint32
	// checked are the results of SignedBy, newest last.
	checked atomic.Pointer[[]check]
}

// check is the result of verifying the signature with one key.
type check struct {
	key string
	ok  bool
}

// Parse reads a CRL in DER. It does not verify the signature and does not compare any time with a
// clock. It returns an error if the list
//
//   - is larger than MaxSize, is no CRL, or is anything but DER if that matters;
//   - is a delta CRL, one for some reasons or for attribute certificates only, or
//     has a distribution point that is named in another way than by URLs: it does
//     not say of each certificate of its issuer whether it is revoked;
//   - has a critical extension that is not processed here, in itself or in an
//     entry (RFC 5280, 5.2 and 5.3);
//   - has an entry for a certificate of another CA without being an indirect list,
//     or entries for certificates of more than 4096 CAs;
//   - is signed with an algorithm weaker than SHA-256.
//
// form must return the same text for any two names, in DER, that are equivalent. The list keeps
// der, which the caller must not change.
func Parse(der []byte, form func(name []byte) string) (*List, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("read a CRL: it is larger than %d bytes", MaxSize)
	}
	l, err := parse(der, form)
	if err != nil {
		return nil, fmt.Errorf("read a CRL: %w", err)
	}
	return l, nil
}

// Len returns the number of revoked certificates.
func (l *List) Len() int {
	n := 0
	for _, entries := range l.entries {
		n += len(entries)
	}
	return n
}

// Indirect reports whether the list may be for certificates of other CAs than its
// issuer (RFC 5280, 5.2.5).
func (l *List) Indirect() bool { return l.scope.indirect }

// Lists reports whether a certificate is revoked or on hold. issuer is the result of form for the
// name of the certificate's issuer.
func (l *List) Lists(issuer string, serial *big.Int) bool {
	if serial == nil {
		return false
	}
	var b cryptobyte.Builder
	b.AddASN1BigInt(serial)
	der, err := b.Bytes()
	if err != nil {
		return false
	}
	return l.lists(issuer, der[1:])
}

// ListsAll reports whether l lists everything that other lists.
func (l *List) ListsAll(other *List) bool {
	for issuer, entries := range other.entries {
		for _, at := range entries {
			if !l.lists(issuer, other.serialAt(at)) {
				return false
			}
		}
	}
	return true
}

// lists is Lists for a serial number in the form of serialAt.
func (l *List) lists(issuer string, serial []byte) bool {
	_, found := slices.BinarySearchFunc(l.entries[issuer], serial, func(at uint32, want []byte) int {
		return bytes.Compare(l.serialAt(at), want)
	})
	return found
}

// serialAt returns the serial number at an offset: its length and its content.
func (l *List) serialAt(at uint32) []byte { return l.signed[at : int(at)+1+int(l.signed[at])] }

// Covers reports whether the list is for a certificate with these CRL distribution points. ca is
// true for a CA certificate.
func (l *List) Covers(ca bool, urls []string) bool {
	if ca && l.scope.onlyUsers || !ca && l.scope.onlyCAs {
		return false
	}
	return len(l.scope.urls) == 0 || slices.ContainsFunc(l.scope.urls, func(u string) bool {
		return slices.Contains(urls, u)
	})
}

// Before reports whether l was issued before other, a list of the same CA: by thisUpdate (RFC 5280,
// 5.1.2.4) and, if that is the same, by the CRL number (5.2.3). A list without a number comes
// first. Numbers are compared only if both lists have the same scope.
func (l *List) Before(other *List) bool {
	switch c := l.ThisUpdate.Compare(other.ThisUpdate); {
	case c != 0:
		return c < 0
	case !l.scope.equal(&other.scope):
		return false
	case l.number == nil || other.number == nil:
		return l.number == nil && other.number != nil
	}
	return l.number.Cmp(other.number) < 0
}

// maxChecked is the number of keys for which the result of SignedBy is kept.
const maxChecked = 4

// SignedBy reports whether the list was signed with the key of a CA certificate; key is a digest
// that identifies that key. It does not compare names. The results for a few keys are cached.
func (l *List) SignedBy(ca *x509.Certificate, key string) bool {
	known := l.checked.Load()
	if known != nil {
		for _, c := range *known {
			if c.key == key {
				return c.ok
			}
		}
	}
	c := check{key: key, ok: ca.CheckSignature(l.algorithm, l.signed, l.signature) == nil}
	var next []check
	if known != nil {
		next = append(next, (*known)[max(0, len(*known)-maxChecked+1):]...)
	}
	next = append(next, c)
	l.checked.Store(&next)
	return c.ok
}
