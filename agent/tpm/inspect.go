package tpm

import (
	"context"
	"crypto"
	"crypto/sha256"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// An EK describes an endorsement key.
type EK struct {
	KeyType attestor.KeyType
	// Public is the key, an *rsa.PublicKey or an *ecdsa.PublicKey.
	Public crypto.PublicKey
	// Hash is the EK hash.
	Hash [sha256.Size]byte
	// Persistent is the handle of a persistent key, or zero.
	Persistent uint32
	// Certificate is the certificate in the TPM for this key, or nil. Its Err says if it
	// could not be parsed.
	Certificate *Certificate
}

// A Report describes a TPM to an operator who enrols its machine.
type Report struct {
	// EK is the endorsement key that the configuration uses.
	EK EK
	// Certificates are all EK certificates in the TPM, readable or not.
	Certificates []Certificate
	// Chain are the CA certificates in the TPM, in DER. ChainErr says why the
	// chain, or the rest of it, could not be read.
	Chain    [][]byte
	ChainErr error
}

// Inspect reports on the TPM and leaves nothing in it. If ctx ends, Inspect waits for
// the command under way, flushes what that command has made, and returns the cause of
// ctx.
func (t *TPM) Inspect(ctx context.Context) (_ *Report, err error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	inv, err := t.prepare(c)
	if err != nil {
		return nil, err
	}
	report := &Report{
		EK: EK{
			KeyType:     inv.template.KeyType,
			Public:      inv.ek.pub,
			Hash:        inv.ek.hash,
			Certificate: inv.certificateOf(inv.ek.pub),
		},
		Certificates: inv.certs,
		Chain:        inv.chain,
		ChainErr:     inv.chainErr,
	}
	if inv.ek.persistent {
		report.EK.Persistent = uint32(inv.ek.handle)
	}
	return report, nil
}
