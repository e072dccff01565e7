// Package ekfile reads files that hold EKs: in PEM, in DER, or as a TPM writes them.
package ekfile

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// MaxSize is the size of the largest file with EKs that is read, in bytes.
const MaxSize = 64 << 20

// Parse reads the content of a file that holds EKs. name goes into ekreport.EK.From. If there is no error, there is
// at least one EK.
func Parse(name string, content []byte) (*File, error) {
	l := &File{from: name, at: map[sources.EKHash]int{}}
	if !bytes.Contains(content, []byte("-----BEGIN")) {
		if err := l.binary(content); err != nil {
			return nil, err
		}
		return l, nil
	}
	begun, number := bytes.Count(content, []byte("-----BEGIN")), 0
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			break
		}
		number++
		if err := l.block(block); err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", number, err)
		}
	}
	switch {
	case number != begun:
		return nil, fmt.Errorf("only %d of %d PEM blocks can be decoded: is the file cut off?", number, begun)
	case len(l.EKs) == 0 && len(l.Chain) > 0:
		return nil, errors.New("its certificates are of CAs, which hold no EK: " +
			"write the certificate or the public key of the EK itself")
	case len(l.EKs) == 0:
		return nil, errors.New("there is no EK in it: write PUBLIC KEY or CERTIFICATE blocks")
	}
	return l, nil
}

// A File is what a file holds: EKs, each once, in the order of the file.
type File struct {
	EKs []ekreport.EK
	// Evidence has as many elements as EKs. Each is what an agent with the EK at that index sends, except the Chain.
	Evidence []sources.Evidence
	// Chain are the CA certificates in the file, in DER. An agent sends them with any of the EKs.
	Chain [][]byte
	from  string
	at    map[sources.EKHash]int // the index in EKs, by EK hash
}

// binary reads a file that is not PEM.
func (l *File) binary(content []byte) error {
	if cert, err := attestor.ParseEKCertificate(content); err == nil {
		if cert.IsCA {
			return errors.New("it is the certificate of a CA, and holds no EK")
		}
		return l.certificate(cert)
	}
	if key, err := x509.ParsePKIXPublicKey(content); err == nil {
		_, err := l.key(key)
		return err
	}
	key, err := attestor.ParseEKPublic(content)
	if err != nil {
		return fmt.Errorf("neither PEM nor an EK certificate or public key in DER nor a TPMT_PUBLIC: %w", err)
	}
	_, err = l.key(key)
	return err
}

func (l *File) block(block *pem.Block) error {
	switch block.Type {
	case "PUBLIC KEY":
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err == nil {
			_, err = l.key(key)
		}
		return err
	case "CERTIFICATE", "X509 CERTIFICATE":
		cert, err := attestor.ParseEKCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if cert.IsCA { // a file may hold CA certificates beside EKs
			l.Chain = append(l.Chain, cert.Raw)
			return nil
		}
		return l.certificate(cert)
	}
	return nil
}

func (l *File) certificate(cert *x509.Certificate) error {
	i, err := l.key(cert.PublicKey)
	if err != nil {
		return err
	}
	l.EKs[i].Certificates = append(l.EKs[i].Certificates, ekreport.OfCertificate(cert))
	if l.Evidence[i].Certificate == nil {
		l.Evidence[i].Certificate = cert.Raw
	}
	return nil
}

// key returns the index of a key in EKs. It adds the key if it is not there.
func (l *File) key(key crypto.PublicKey) (int, error) {
	hash, err := attestor.HashEK(key)
	if err != nil {
		return 0, err
	}
	i, ok := l.at[hash]
	if !ok {
		keyType, err := attestor.KeyTypeOf(key)
		if err != nil {
			return 0, err
		}
		i = len(l.EKs)
		l.at[hash] = i
		l.EKs = append(l.EKs, ekreport.EK{
			From: l.from, Hash: hex.EncodeToString(hash[:]), KeyType: string(keyType),
			Certificates: []ekreport.Certificate{},
		})
		l.Evidence = append(l.Evidence, sources.Evidence{EKHash: hash, EK: key})
	}
	return i, nil
}
