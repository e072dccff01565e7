package clitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// WriteAuthorities writes a CA, ca.pem with ca.key, and two certificates for the same key: leaf.pem is not a CA
// certificate, and old.pem has expired.
func WriteAuthorities(folder string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(folder, name) }
	errs := []error{os.MkdirAll(folder, 0o700), WritePEM(at("ca.key"), key, x509.MarshalPKCS8PrivateKey, "PRIVATE KEY")}
	for name, change := range map[string]func(*x509.Certificate){
		"ca.pem":   func(*x509.Certificate) {},
		"leaf.pem": func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature },
		"old.pem":  func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
	} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Device CA"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		change(template)
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		errs = append(errs, err,
			os.WriteFile(at(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	}
	return errors.Join(errs...)
}
