package smallfile

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// MaxPEM is the largest file of certificates or of a key, in bytes.
const MaxPEM = 4 << 20

// Blocks returns all PEM blocks in a file (RFC 7468). It skips text around them. A block that
// cannot be read, because its beginning, its end or some of its lines are missing, is an error, so
// that no certificate is silently left out. data may begin with a byte order mark.
func Blocks(data []byte) ([]*pem.Block, error) {
	const begin, end = "-----BEGIN", "-----END"
	data = TrimMark(data)
	begun := bytes.Count(data, []byte(begin))
	if ended := bytes.Count(data, []byte(end)); ended > begun {
		return nil, fmt.Errorf("is damaged: it ends %d PEM blocks but begins only %d", ended, begun)
	}
	var blocks []*pem.Block
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		blocks = append(blocks, block)
	}
	if len(blocks) != begun {
		return nil, fmt.Errorf("is damaged: it begins %d PEM blocks, but only %d are complete", begun, len(blocks))
	}
	return blocks, nil
}

// CheckPair returns an error if only one of client_cert_path and client_key_path is set.
func CheckPair(certPath, keyPath string) error {
	if (certPath == "") == (keyPath == "") {
		return nil
	}
	missing := "client_cert_path"
	if keyPath == "" {
		missing = "client_key_path"
	}
	return sources.BadField(missing, "is missing: the client certificate and its key go together")
}

// CertPool reads a PEM file of trusted CA certificates. It returns an error if it cannot read every
// one of them: otherwise a server whose CA was left out would seem to be at fault.
func CertPool(path string) (*x509.CertPool, error) {
	data, err := Read(path, MaxPEM)
	if err != nil {
		return nil, fmt.Errorf("read the CA certificates: %w", err)
	}
	blocks, err := Blocks(data)
	if err != nil {
		return nil, fmt.Errorf("the file of CA certificates %q %w", path, err)
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("there is no CA certificate in %q: add one in PEM", path)
	}
	pool := x509.NewCertPool()
	for i, block := range blocks {
		cert, err := certificate(block)
		if err != nil {
			return nil, fmt.Errorf("PEM block %d in the file of CA certificates %q: %w", i+1, path, err)
		}
		pool.AddCert(cert)
	}
	return pool, nil
}

func certificate(block *pem.Block) (*x509.Certificate, error) {
	if block.Type != "CERTIFICATE" && block.Type != "X509 CERTIFICATE" {
		return nil, fmt.Errorf("it is a %.40q: leave nothing but CERTIFICATE blocks in the file", block.Type)
	}
	if len(block.Headers) > 0 {
		return nil, errors.New("it has PEM headers: write the certificate without them")
	}
	return x509.ParseCertificate(block.Bytes)
}

// KeyPair reads a client certificate, with its chain, and its key. The error says if they do
// not belong together.
func KeyPair(certPath, keyPath string) (tls.Certificate, error) {
	certs, err := Read(certPath, MaxPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the client certificate: %w", err)
	}
	key, err := Read(keyPath, MaxPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the key of the client certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certs, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the client certificate %q with the key %q: %w", certPath, keyPath, err)
	}
	return pair, nil
}
