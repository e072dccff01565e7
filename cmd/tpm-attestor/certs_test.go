package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
)

// writeCertificates writes the certificate of a CA (ca.pem), a CA that has expired (oldca.pem), a
// client (client.pem, client.key) and a client whose certificate has expired (oldclient.pem), with the
// same key.
func writeCertificates(folder string) error {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("c", ed25519.SeedSize)))
	long := time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)
	past := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	certificate := func(name string, ca bool, until time.Time) error {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
			NotBefore: past.AddDate(-1, 0, 0), NotAfter: until, IsCA: ca, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte(name),
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(folder, name+".pem"),
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	}
	return errors.Join(
		certificate("ca", true, long), certificate("oldca", true, past),
		certificate("client", false, long), certificate("oldclient", false, past),
		clitest.WritePEM(filepath.Join(folder, "client.key"), key, x509.MarshalPKCS8PrivateKey, "PRIVATE KEY"),
	)
}
