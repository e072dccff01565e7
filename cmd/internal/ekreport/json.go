package ekreport

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// An EK is the JSON form of an endorsement key. Texts from certificates are not escaped for a
// terminal; times are in RFC 3339 and UTC.
type EK struct {
	// From is the name of the file that the EK was read from, or "tpm".
	From string `json:"from"`
	// Hash is the EK hash. KeyType is the type of the key, "rsa2048" for example.
	Hash    string `json:"hash"`
	KeyType string `json:"key_type"`
	// PersistentHandle is the handle of a persistent key, "0x81010001" for example.
	PersistentHandle string `json:"persistent_handle,omitempty"`
	// CertificateIndex is the NV index of the certificate for this key.
	CertificateIndex string `json:"certificate_index,omitempty"`
	// Certificates are all EK certificates that were found, also those for other keys.
	Certificates []Certificate `json:"certificates"`
	// CACertificates is how many CA certificates the TPM holds. ChainError says why
	// the chain, or the rest of it, could not be read.
	CACertificates int    `json:"ca_certificates,omitempty"`
	ChainError     string `json:"chain_error,omitempty"`
}

// fromTPM is the value of EK.From for this machine's TPM.
const fromTPM = "tpm"

// A Certificate is the JSON form of an EK certificate. If it could not be read, Error says
// why.
type Certificate struct {
	Index      string   `json:"nv_index,omitempty"`
	KeyType    string   `json:"key_type,omitempty"`
	Hash       string   `json:"ek_hash,omitempty"`
	Issuer     string   `json:"issuer,omitempty"`
	Serial     string   `json:"serial,omitempty"`
	TPM        string   `json:"tpm,omitempty"`
	NotBefore  string   `json:"not_before,omitempty"`
	NotAfter   string   `json:"not_after,omitempty"`
	IssuerURLs []string `json:"issuer_urls,omitempty"`
	Error      string   `json:"error,omitempty"`
}

// FromTPM returns the JSON form of a TPM's report.
func FromTPM(r *tpm.Report) EK {
	ek := EK{
		From: fromTPM, Hash: hex.EncodeToString(r.EK.Hash[:]), KeyType: string(r.EK.KeyType),
		Certificates: []Certificate{}, CACertificates: len(r.Chain),
	}
	if r.EK.Persistent != 0 {
		ek.PersistentHandle = fmt.Sprintf("%#08x", r.EK.Persistent)
	}
	if r.EK.Certificate != nil {
		ek.CertificateIndex = fmt.Sprintf("%#08x", r.EK.Certificate.Index)
	}
	for i := range r.Certificates {
		found := &r.Certificates[i]
		c := Certificate{}
		if found.Err != nil {
			c.Error = found.Err.Error()
		} else {
			c = OfCertificate(found.Certificate)
		}
		c.Index = fmt.Sprintf("%#08x", found.Index)
		ek.Certificates = append(ek.Certificates, c)
	}
	if r.ChainErr != nil {
		ek.ChainError = r.ChainErr.Error()
	}
	return ek
}

// OfCertificate returns the JSON form of an EK certificate.
func OfCertificate(cert *x509.Certificate) Certificate {
	c := Certificate{
		Issuer: cert.Issuer.String(), Serial: fmt.Sprintf("%x", cert.SerialNumber), TPM: tpmName(cert),
		NotBefore: stamp(cert.NotBefore), NotAfter: stamp(cert.NotAfter), IssuerURLs: cert.IssuingCertificateURL,
	}
	if keyType, err := attestor.KeyTypeOf(cert.PublicKey); err == nil {
		c.KeyType = string(keyType)
	}
	if hash, err := attestor.HashEK(cert.PublicKey); err == nil {
		c.Hash = hex.EncodeToString(hash[:])
	}
	return c
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
