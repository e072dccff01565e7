package mirror

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// MaxInput is the maximum length of a file for Machines.Read, in bytes.
const MaxInput = 256 << 20

// Machines are the EKs and DevIDs for whose certificates a mirror is filled. The zero value has
// none.
type Machines struct {
	eks []*ek
	// byHash are the same, by their EK hash.
	byHash map[sources.EKHash]*ek
	// devIDs are certificates of DevIDs, and bySum has their digests.
	devIDs []*x509.Certificate
	bySum  map[[sha256.Size]byte]bool
	// cas are certificates of CAs, which need not be fetched.
	cas []*x509.Certificate
}

// ek is an EK with its certificates. If it has none, the services are asked.
type ek struct {
	hash         sources.EKHash
	key          crypto.PublicKey
	certificates []*x509.Certificate
}

// Len returns the number of EKs.
func (m *Machines) Len() int { return len(m.eks) }

// DevIDs returns the number of DevID certificates.
func (m *Machines) DevIDs() int { return len(m.devIDs) }

// Read adds the EKs and DevIDs in a file: PEM (RFC 7468) with the CERTIFICATE and PUBLIC KEY blocks
// of any number of machines, as `tpm-attestor-agent -pem` prints them, or a single EK certificate
// in DER, as it is read from a TPM. A certificate for a key that signs is taken to be a DevID's
// (certs.SeemsDevID). CA certificates are not fetched: machines send them, or servers have them. A
// file may have nothing but CA certificates. Other blocks, and text between blocks, are skipped. If
// something cannot be read, Read adds nothing from the file.
func (m *Machines) Read(content []byte) error {
	var found Machines
	if content = smallfile.TrimMark(content); !bytes.Contains(content, []byte("-----BEGIN")) {
		if err := found.certificate(content); err != nil {
			return fmt.Errorf("neither PEM nor an EK certificate in DER: %w", err)
		}
		m.join(&found)
		return nil
	}
	blocks, err := smallfile.Blocks(content)
	if err != nil {
		return err
	}
	for i, block := range blocks {
		if err := found.block(block); err != nil {
			return fmt.Errorf("PEM block %d: %w", i+1, err)
		}
	}
	if len(found.eks) == 0 && len(found.devIDs) == 0 && len(found.cas) == 0 {
		return errors.New("there is no EK in it: create it with `tpm-attestor-agent -pem` on the machine")
	}
	m.join(&found)
	return nil
}

func (m *Machines) block(block *pem.Block) error {
	switch block.Type {
	case "PUBLIC KEY":
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return fmt.Errorf("read the public key: %w", err)
		}
		_, err = m.key(key)
		return err
	case "CERTIFICATE", "X509 CERTIFICATE":
		return m.certificate(block.Bytes)
	}
	return nil
}

func (m *Machines) certificate(der []byte) error {
	cert, err := attestor.ParseEKCertificate(der)
	if err != nil {
		return err
	}
	switch {
	case cert.IsCA:
		m.addCA(cert)
		return nil
	case certs.SeemsDevID(cert):
		m.addDevID(cert)
		return nil
	}
	e, err := m.key(cert.PublicKey)
	if err == nil {
		e.certificates = append(e.certificates, cert)
	}
	return err
}

// key returns the entry of an EK, and creates it if there is none.
func (m *Machines) key(key crypto.PublicKey) (*ek, error) {
	hash, err := attestor.HashEK(key)
	if err != nil {
		return nil, err
	}
	if e := m.byHash[hash]; e != nil {
		return e, nil
	}
	if m.byHash == nil {
		m.byHash = map[sources.EKHash]*ek{}
	}
	e := &ek{hash: hash, key: key}
	m.byHash[hash], m.eks = e, append(m.eks, e)
	return e, nil
}

// join adds what other has.
func (m *Machines) join(other *Machines) {
	for _, o := range other.eks {
		e, err := m.key(o.key)
		if err == nil { // cannot fail: other has accepted it
			e.certificates = append(e.certificates, o.certificates...)
		}
	}
	for _, c := range other.devIDs {
		m.addDevID(c)
	}
	for _, ca := range other.cas {
		m.addCA(ca)
	}
}

func (m *Machines) addDevID(c *x509.Certificate) {
	sum := sha256.Sum256(c.Raw)
	if m.bySum == nil {
		m.bySum = map[[sha256.Size]byte]bool{}
	}
	if !m.bySum[sum] {
		m.bySum[sum], m.devIDs = true, append(m.devIDs, c)
	}
}

func (m *Machines) addCA(ca *x509.Certificate) {
	if !slices.ContainsFunc(m.cas, ca.Equal) {
		m.cas = append(m.cas, ca)
	}
}
