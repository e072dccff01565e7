// Incumbent runs one attestation like a spire-tpm-plugin server that was built with
// go-attestation v0.5.1. It reads the payload from standard input, writes the challenge to
// standard output, and reads the response. Exit code 0 means admitted. Otherwise standard error
// has the message of such a server.
package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/go-attestation/attest"
)

func main() {
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(in io.Reader, out io.Writer) error {
	messages := json.NewDecoder(in)
	var payload struct {
		EK []byte
		AK *attest.AttestationParameters
	}
	if err := messages.Decode(&payload); err != nil {
		return fmt.Errorf("tpm: failed to unmarshal attestation data: %w", err)
	}
	ek, err := decodeEK(payload.EK)
	if err != nil {
		return err
	}
	params := attest.ActivationParameters{TPMVersion: attest.TPMVersion20, EK: ek, AK: *payload.AK}
	secret, credential, err := params.Generate()
	if err != nil {
		return fmt.Errorf("tpm: could not generate credential challenge: %w", err)
	}
	challenge := struct{ EC *attest.EncryptedCredential }{credential}
	if err := json.NewEncoder(out).Encode(challenge); err != nil {
		return err
	}
	var response struct{ Secret []byte }
	if err := messages.Decode(&response); err != nil {
		return fmt.Errorf("tpm: unable to unmarshal challenge response: %w", err)
	}
	if !bytes.Equal(secret, response.Secret) {
		return errors.New("tpm: incorrect secret from attestor")
	}
	return nil
}

// decodeEK returns the EK from the PEM blocks in a payload.
func decodeEK(text []byte) (ek crypto.PublicKey, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			_, err = x509.ParseCertificate(block.Bytes)
		case "PUBLIC KEY":
			ek, err = x509.ParsePKIXPublicKey(block.Bytes)
		}
		if err != nil {
			return nil, err
		}
	}
	return ek, nil
}
