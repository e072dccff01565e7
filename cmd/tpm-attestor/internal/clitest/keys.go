package clitest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// WriteKeys writes two keys that sign lists, list.key and other.key, and their public keys.
func WriteKeys(folder string) error {
	for _, name := range []string{"list", "other"} {
		private := ed25519.NewKeyFromSeed([]byte(strings.Repeat(name[:1], ed25519.SeedSize)))
		if err := errors.Join(
			WritePEM(filepath.Join(folder, name+".key"), private, x509.MarshalPKCS8PrivateKey, "PRIVATE KEY"),
			WritePEM(filepath.Join(folder, name+".pub"), private.Public(), x509.MarshalPKIXPublicKey, "PUBLIC KEY"),
		); err != nil {
			return err
		}
	}
	return nil
}

// WritePEM writes a key, encoded by marshal, as a PEM block of the type what.
func WritePEM[K crypto.PrivateKey](path string, key K, marshal func(any) ([]byte, error), what string) error {
	der, err := marshal(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: what, Bytes: der}), 0o600)
}
