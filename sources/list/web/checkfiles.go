package web

import (
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// CheckFiles reads the files that the configuration names, except for the cache, as the next
// attempt to load the list would. For each file over which the attempt would fail, it calls wrong
// with the name of the field and the reason. It opens nothing else.
func (c ListConfig) CheckFiles(wrong func(field string, err error)) {
	check := func(field string, err error) {
		if err != nil {
			wrong(field, err)
		}
	}
	if c.CAPath != "" {
		_, err := smallfile.CertPool(c.CAPath)
		check("ca_path", err)
	}
	if c.ClientCertPath != "" {
		_, err := smallfile.KeyPair(c.ClientCertPath, c.ClientKeyPath)
		check("client_cert_path", err)
	}
	_, err := readToken(c.BearerTokenPath)
	check("bearer_token_path", err)
	if c.PublicKeyPath != "" {
		check("public_key_path", checkPublicKeys(c.PublicKeyPath))
	}
}

func checkPublicKeys(path string) error {
	pem, err := smallfile.Read(path, signature.MaxPublicKeys)
	if err != nil {
		return fmt.Errorf("read the public key: %w", err)
	}
	if _, err := signature.ParsePublicKeys(pem); err != nil {
		return fmt.Errorf("the public key %q: %w", path, err)
	}
	return nil
}
