package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// maxReply is the maximum size of the reply of a service for EK certificates, in bytes.
const maxReply = 64 << 10

// The vendors' services for EK certificates that TPMs do not carry.
const (
	EKServiceIntel = "intel"
	EKServiceAMD   = "amd"
)

// EKCertificateURL returns the URL below base at which a service, EKServiceIntel or EKServiceAMD,
// has the certificate of an EK. It returns false if the service has none for EKs of that type.
func EKCertificateURL(service, base string, ek crypto.PublicKey) (string, bool) {
	if !strings.HasSuffix(base, "/") {
		base += "/"
	}
	switch service {
	case EKServiceIntel:
		// SHA-256 of the modulus and the exponent, or of both coordinates.
		if key, ok := keyBytes(ek, nil, nil, []byte{1, 0, 1}); ok {
			hash := sha256.Sum256(key)
			return base + url.QueryEscape(base64.URLEncoding.EncodeToString(hash[:])), true
		}
	case EKServiceAMD:
		// Half of the SHA-256 of the kind of key, the exponent of an RSA key, and
		// the modulus or both coordinates.
		if key, ok := keyBytes(ek, []byte{0, 0, 0x22, 0x22, 0, 1, 0, 1}, []byte{0, 0, 0x44, 0x44}, nil); ok {
			hash := sha256.Sum256(key)
			return base + hex.EncodeToString(hash[:16]), true
		}
	}
	return "", false
}

// WantEK returns the Want for the certificate of an EK that a service may have; its value is an
// *x509.Certificate. It returns false if the service has none for EKs of that type.
func WantEK(service, base string, ek crypto.PublicKey, now time.Time) (Want, bool) {
	at, ok := EKCertificateURL(service, base, ek)
	return Want{Kind: EKCertificate, URL: at, read: func(body []byte) (any, time.Time, error) {
		cert, err := ReadReply(service, body, ek)
		if err != nil {
			return nil, time.Time{}, err
		}
		return cert, keptUntil(now, cert), nil
	}}, ok
}

// keyBytes returns an RSA modulus between rsaPrefix and rsaSuffix, or both coordinates of a point
// after eccPrefix. It returns false for an exponent other than 65537, the default of all TPMs: no
// service has such keys.
func keyBytes(ek crypto.PublicKey, rsaPrefix, eccPrefix, rsaSuffix []byte) ([]byte, bool) {
	switch key := ek.(type) {
	case *rsa.PublicKey:
		const usual = 65537
		if key == nil || key.N == nil || key.N.Sign() <= 0 || key.E != usual {
			return nil, false
		}
		return slices.Concat(rsaPrefix, key.N.FillBytes(make([]byte, (key.N.BitLen()+7)/8)), rsaSuffix), true
	case *ecdsa.PublicKey:
		if !whole(key) {
			return nil, false
		}
		point, err := key.Bytes() // 04, X, Y
		if err != nil {
			return nil, false
		}
		return slices.Concat(eccPrefix, point[1:]), true
	}
	return nil, false
}

// ReadReply reads the reply of a service, EKServiceIntel or EKServiceAMD, for an EK. It must be a
// certificate for exactly that key. Nothing else about the certificate is verified.
func ReadReply(service string, body []byte, ek crypto.PublicKey) (*x509.Certificate, error) {
	if len(body) > maxReply {
		return nil, fmt.Errorf("a reply of more than %d bytes", maxReply)
	}
	if service == EKServiceIntel {
		der, err := unwrapReply(body)
		if err != nil {
			return nil, err
		}
		body = der
	}
	cert, err := attestor.ParseEKCertificate(body)
	if err != nil {
		return nil, fmt.Errorf("read the EK certificate: %w", err)
	}
	if !SameKey(cert.PublicKey, ek) {
		return nil, errors.New("the certificate is for another key")
	}
	return cert, nil
}

// unwrapReply returns the certificate in a JSON reply of Intel's service, which has it in base64url
// with URL-escaped padding.
func unwrapReply(body []byte) ([]byte, error) {
	var reply struct {
		Certificate string `json:"certificate"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		return nil, fmt.Errorf("read the reply: %w", err)
	}
	text := strings.ReplaceAll(reply.Certificate, "%3D", "=")
	encoding := base64.URLEncoding
	if !strings.HasSuffix(text, "=") {
		encoding = base64.RawURLEncoding
	}
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("read the reply: a certificate with line ends in base64")
	}
	der, err := encoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("read the reply: the certificate: %w", err)
	}
	if len(der) == 0 {
		return nil, errors.New("read the reply: it has no certificate")
	}
	return der, nil
}

// SameKey reports whether a and b are the same public key, RSA or ECDSA.
func SameKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		b, ok := b.(*rsa.PublicKey)
		return ok && a != nil && b != nil && a.N != nil && b.N != nil && a.Equal(b)
	case *ecdsa.PublicKey:
		b, ok := b.(*ecdsa.PublicKey)
		return ok && whole(a) && whole(b) && a.Equal(b)
	}
	return false
}

// whole reports whether k is complete.
func whole(k *ecdsa.PublicKey) bool {
	//nolint:staticcheck // SA1019: the coordinates are looked at and not changed
	return k != nil && k.Curve != nil && k.X != nil && k.Y != nil
}
