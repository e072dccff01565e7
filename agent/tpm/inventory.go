package tpm

import (
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// nonceIndices are the NV indices of the EK nonces (profile, 2.2.1.4). If a vendor has
// written a nonce, the vendor has made the EK and its certificate with that nonce in
// the template's unique field. The indices for whole EK templates are not read: no
// server accepts a key from a vendor's own template as an EK.
var nonceIndices = map[attestor.KeyType]tpm2.TPMHandle{
	attestor.RSA2048: 0x01C00003,
	attestor.P256:    0x01C0000B,
}

// inventory is what does not change between attestations with one configuration.
type inventory struct {
	caps     *capabilities
	template attestor.EKTemplate // the EK's, with the nonce if there is one
	indices  []tpm2.TPMHandle    // the NV indices for EK certificates and their chain
	certs    []Certificate
	chain    [][]byte
	chainErr error // why the chain, or the rest of it, could not be read
	// unread says that an index for an EK certificate or for an EK nonce could not
	// be read, or has not been written yet. So the next attestation looks again.
	unread bool
	// ek is the EK. Unless the EK is persistent, it is not loaded.
	ek *endorsementKey
}

// takeInventory reads from the TPM everything that the choice of the EK depends on,
// and the EK certificates.
func (t *TPM) takeInventory(c *conn) (*inventory, error) {
	caps, err := readCapabilities(c)
	if err != nil {
		return nil, err
	}
	keyType, err := chooseEK(t.config.EK, caps)
	if err != nil {
		return nil, err
	}
	inv := &inventory{caps: caps}
	if inv.template, err = attestor.TemplateFor(keyType); err != nil {
		return nil, err
	}
	if inv.indices, err = listHandles(c, firstEKIndex, lastChainIndex); err != nil {
		return nil, explain("list the TPM's NV indices", err)
	}
	if err := t.applyNonce(c, inv); err != nil {
		return nil, err
	}
	if inv.certs, err = t.readCertificates(c, inv.indices, caps.nvBuffer); err != nil {
		return nil, err
	}
	inv.chain, inv.chainErr = t.readChain(c, inv.indices, caps.nvBuffer)
	if c.err != nil {
		return nil, explain("read the EK certificate chain", c.err)
	}
	inv.unread = inv.unread || slices.ContainsFunc(inv.certs, func(c Certificate) bool { return c.Err != nil })
	return inv, nil
}

// chooseEK returns the type of EK to use. It depends only on the configuration and on
// what the TPM can do. So a machine keeps its SPIFFE ID when certificates or persistent
// keys come and go.
func chooseEK(configured attestor.KeyType, caps *capabilities) (attestor.KeyType, error) {
	if configured != "" {
		if !caps.can(configured) {
			return "", unsupportedEK(configured)
		}
		return configured, nil
	}
	for _, t := range []attestor.KeyType{attestor.RSA2048, attestor.P256} {
		if caps.can(t) {
			return t, nil
		}
	}
	return "", &Error{
		Class: ErrSetup,
		Err:   errors.New("the TPM supports neither RSA nor P-256 endorsement keys"),
		Key:   "ek",
		Hint:  "set ek to a type that it supports, such as p384",
	}
}

func unsupportedEK(t attestor.KeyType) error {
	return &Error{
		Class: ErrSetup,
		Err:   fmt.Errorf("the TPM does not support endorsement keys of type %s", t),
		Key:   "ek",
		Hint:  "set ek to another type",
	}
}

// applyNonce puts the vendor's nonce at the beginning of the template's unique field
// (profile, B.3). If the index is defined but has not been written, there is no nonce.
// If it cannot be read, that is an error: without the nonce that it may hold, the TPM
// would make another EK.
func (t *TPM) applyNonce(c *conn, inv *inventory) error {
	index, ok := nonceIndices[inv.template.KeyType]
	if !ok || !slices.Contains(inv.indices, index) {
		return nil
	}
	nonce, err := t.readNV(c, index, inv.caps.nvBuffer)
	switch {
	case c.err != nil:
		return explain("read the EK's nonce", c.err)
	case errors.Is(err, errUnwritten):
		inv.unread = true
		return nil
	case err != nil:
		return badNonce(index, err)
	}
	pub := &inv.template.Public
	var unique []byte
	if rsa, err := pub.Unique.RSA(); err == nil {
		unique = rsa.Buffer
	} else if ecc, err := pub.Unique.ECC(); err == nil {
		unique = ecc.X.Buffer
	}
	if len(nonce) > len(unique) {
		return badNonce(index, fmt.Errorf("it has %d bytes: at most %d fit the template", len(nonce), len(unique)))
	}
	copy(unique, nonce)
	return nil
}

// badNonce returns the error for an EK nonce that is in the TPM and cannot be used.
func badNonce(index tpm2.TPMHandle, err error) error {
	err = fmt.Errorf("the EK's nonce at NV index %#08x: %w", uint32(index), err)
	if errors.Is(err, ErrSetup) || errors.Is(err, ErrNotReady) {
		return err // it has a remedy
	}
	return &Error{
		Class: ErrSetup, Err: err, Key: "ek",
		Hint: "make the index readable as the profile requires, or set ek to a type without a nonce, such as p384",
	}
}

// certificateOf returns the certificate whose public key is pub, or nil. It returns a
// certificate that cannot be parsed only if there is no other.
func (inv *inventory) certificateOf(pub crypto.PublicKey) (found *Certificate) {
	key, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return nil
	}
	for i := range inv.certs {
		cert := &inv.certs[i]
		if cert.Raw != nil && key.Equal(cert.key) && (found == nil || found.Err != nil) {
			found = cert
		}
	}
	return found
}
