package tpm

import (
	"context"
	"crypto"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// An EK describes an endorsement key.
type EK struct {
	KeyType attestor.KeyType
	// Public is the key, an *rsa.PublicKey or an *ecdsa.PublicKey.
	Public crypto.PublicKey
	// Hash is the EK hash.
	Hash string
	// Persistent is the handle of a persistent key; zero where it was made.
	Persistent uint32
	// Certificate is the one that the TPM holds for the key, or nil.
	Certificate *Certificate
}

// A Report is what there is to say of a TPM to whoever enrols its machine.
type Report struct {
	// EK is the endorsement key that the configuration uses.
	EK EK
	// Certificates are all that the TPM holds, readable or not.
	Certificates []Certificate
	// Chain are the CA certificates that the TPM holds, in DER; ChainErr says
	// why they, or the rest of them, could not be read.
	Chain    [][]byte
	ChainErr error
}

// Inspect reports on the TPM, and leaves nothing in it.
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
