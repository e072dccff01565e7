package devid

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// equalKey is a method of every public key in the standard library.
type equalKey interface{ Equal(crypto.PublicKey) bool }

// An authority is the CA that signs DevIDs.
type authority struct {
	cert  *x509.Certificate
	above []*x509.Certificate // as in the file
	key   crypto.Signer
}

// readAuthority reads a CA's certificate, those above it, and its key.
func readAuthority(certPath, keyPath string) (*authority, error) {
	chain, err := readCertificates(certPath)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate %q: %w", certPath, err)
	}
	key, err := readKey(keyPath)
	if err != nil {
		return nil, fmt.Errorf("the CA's key %q: %w", keyPath, err)
	}
	a := &authority{cert: chain[0], above: chain[1:], key: key}
	if err := a.check(time.Now()); err != nil {
		return nil, fmt.Errorf("the CA's certificate %q: %w", certPath, err)
	}
	return a, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := smallfile.Read(path, smallfile.MaxPEM)
	if err != nil {
		return nil, err
	}
	blocks, err := smallfile.Blocks(text)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of the type %q", b.Type)
		}
		cert, err := attestor.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, errors.New("there is no certificate in it")
	}
	return all, nil
}

func readKey(path string) (crypto.Signer, error) {
	text, err := smallfile.Read(path, smallfile.MaxPEM)
	if err != nil {
		return nil, err
	}
	blocks, err := smallfile.Blocks(text)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		var key any
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "EC PARAMETERS": // openssl ecparam writes them before the key
			continue
		default:
			return nil, fmt.Errorf("a PEM block of the type %q: want a PRIVATE KEY that is not encrypted", b.Type)
		}
		if err != nil {
			return nil, err
		}
		switch key := key.(type) {
		case *rsa.PrivateKey:
			return key, nil
		case *ecdsa.PrivateKey:
			return key, nil
		}
		return nil, fmt.Errorf("a key of the type %T: want RSA or ECDSA", key)
	}
	return nil, errors.New("there is no key in it")
}

// check returns why no server would accept a DevID that a signs, or nil. It checks the chain as servers do.
func (a *authority) check(now time.Time) error {
	if key, ok := a.cert.PublicKey.(equalKey); !ok || !key.Equal(a.key.Public()) {
		return errors.New("the key is not this certificate's: the CA's own certificate has to be the first")
	}
	if err := certs.CheckAuthority(certs.DevID(), a.chain(), now); err != nil {
		return fmt.Errorf("%w: no server would take a DevID by it; use another CA, "+
			"or have that certificate issued anew", err)
	}
	return nil
}

// chain returns the CA's certificate and those above it.
func (a *authority) chain() []*x509.Certificate {
	return append([]*x509.Certificate{a.cert}, a.above...)
}

// end returns the earliest expiry of the CA's certificate and the certificates above it.
func (a *authority) end() time.Time {
	end := a.cert.NotAfter
	for _, c := range a.above {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// clockSkew is how far a server's clock may be behind.
const clockSkew = 5 * time.Minute

// sign signs a DevID certificate for key. It returns an error if a server would not accept the certificate.
func (a *authority) sign(
	ctx context.Context, template *x509.Certificate, key crypto.PublicKey,
) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(spki)
	template.SubjectKeyId = id[:20] // RFC 7093, 2: any hash of the key will do, since nobody recomputes it
	template.NotBefore = time.Now().Add(-clockSkew)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	for _, arcs := range [][]uint64{oidVerifiedResidency, oidVerifiedFixed} {
		oid, err := x509.OIDFromInts(arcs)
		if err != nil {
			return nil, err
		}
		template.Policies = append(template.Policies, oid)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		return nil, err
	}
	cert, err := attestor.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return cert, certs.CheckIssued(ctx, certs.DevID(), cert, a.chain(), time.Now())
}

// behind returns a certificate in DER, followed by the CA's and those above it that are not self-signed: a server
// has the root itself.
func (a *authority) behind(cert *x509.Certificate) [][]byte {
	chain := [][]byte{cert.Raw}
	for _, c := range a.chain() {
		if !bytes.Equal(c.RawSubject, c.RawIssuer) {
			chain = append(chain, c.Raw)
		}
	}
	return chain
}
