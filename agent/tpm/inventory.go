package tpm

import (
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The NV indices of the EK nonces (profile, 2.2.1.4). A vendor that filled one
// made the EK, and its certificate, with the nonce in the template's unique
// field. The indices of EK templates are left alone: a key from a template of
// the vendor's own is none that a server takes for an EK.
var nonceIndices = map[attestor.KeyType]tpm2.TPMHandle{
	attestor.RSA2048: 0x01C00003,
	attestor.P256:    0x01C0000B,
}

// inventory is what does not change between attestations of one configuration.
type inventory struct {
	caps     *capabilities
	template attestor.EKTemplate // of the EK, with the nonce where there is one
	indices  []tpm2.TPMHandle    // of NV, for EK certificates and their chain
	certs    []Certificate
	chain    [][]byte
	chainErr error // why the chain, or the rest of it, could not be read
	// unread is set where an index for an EK certificate or an EK nonce could
	// not be read, or has not been written: that may change.
	unread bool
	// ek is the EK that was found or made; its handle may be gone.
	ek *endorsementKey
}

// takeInventory reads from the TPM what the EK and its certificate depend on.
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

// chooseEK returns the type of EK to use. It depends on the configuration and on
// the TPM's abilities alone, so that a machine keeps its ID when certificates
// or persistent keys come and go.
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
		Hint:  "set ek to a type that it supports, such as p384",
	}
}

func unsupportedEK(t attestor.KeyType) error {
	return &Error{
		Class: ErrSetup,
		Err:   fmt.Errorf("the TPM does not support endorsement keys of type %s", t),
		Hint:  "set ek to another type",
	}
}

// applyNonce puts the vendor's nonce into the template, at the beginning of its
// unique field (profile, B.3). An index that is defined and has not been written
// holds none; one that cannot be read may hold one, so it is an error: without it
// the EK would be another.
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

// badNonce is the error for an EK nonce that is there and cannot be used.
func badNonce(index tpm2.TPMHandle, err error) error {
	err = fmt.Errorf("the EK's nonce at NV index %#08x: %w", uint32(index), err)
	if errors.Is(err, ErrSetup) || errors.Is(err, ErrNotReady) {
		return err // with a remedy
	}
	return &Error{
		Class: ErrSetup, Err: err,
		Hint: "make the index readable as the profile requires, or set ek to a type without a nonce, such as p384",
	}
}

// certificateOf returns the certificate whose public key is pub, or nil.
func (inv *inventory) certificateOf(pub crypto.PublicKey) *Certificate {
	key, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return nil
	}
	for i, cert := range inv.certs {
		if cert.Certificate != nil && key.Equal(cert.Certificate.PublicKey) {
			return &inv.certs[i]
		}
	}
	return nil
}
