package tpm

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// The NV indices of the EK certificate chain (profile, 2.2.1.5.2): the CA
// certificates of a TPM that is issued its EK certificate on the die, one behind
// the other in DER, across as many indices as they need.
const (
	firstChainIndex tpm2.TPMHandle = 0x01C00100
	lastChainIndex  tpm2.TPMHandle = 0x01C001FF
)

const (
	// maxChainSize is how much of the chain is read, in bytes, so that it fits
	// into a payload with everything else. Intel's has about four thousand.
	maxChainSize = 24 << 10
	// maxChain is how many certificates a payload takes.
	maxChain = 16
)

// readChain reads the certificates of the chain, in the order of the TPM. What
// cannot be read costs the rest of the chain and is the error; it is no reason
// not to attest, since a server may know the certificates itself.
func (t *TPM) readChain(c *conn, indices []tpm2.TPMHandle, bufferSize uint16) ([][]byte, error) {
	var all []byte
	for _, index := range indices {
		if index < firstChainIndex || index > lastChainIndex {
			continue
		}
		content, err := t.readNV(c, index, bufferSize)
		if err == nil && len(all)+len(content) > maxChainSize {
			err = fmt.Errorf("the chain has more than %d bytes", maxChainSize)
		}
		if err != nil {
			chain, _ := splitCertificates(all) // err comes first
			return chain, fmt.Errorf("EK certificate chain: NV index %#08x: %w", uint32(index), err)
		}
		all = append(all, content...)
	}
	chain, err := splitCertificates(all)
	if err != nil {
		err = fmt.Errorf("EK certificate chain: %w", err)
	}
	return chain, err
}

// retryChain reads a chain again that could not be read to its end: what was in
// the way may have passed.
func (t *TPM) retryChain(c *conn, inv *inventory) error {
	if inv.chainErr == nil {
		return nil
	}
	inv.chain, inv.chainErr = t.readChain(c, inv.indices, inv.caps.nvBuffer)
	return explain("read the EK certificate chain", c.err)
}

// splitCertificates returns the certificates that follow one another in b. What stands
// behind them is padding, and not read; before the first it is of 0x00 or 0xFF.
func splitCertificates(b []byte) ([][]byte, error) {
	const sequence = 0x30 // how a certificate begins
	var chain [][]byte
	for len(b) > 0 && b[0] != 0x00 && b[0] != 0xFF {
		if len(chain) > 0 && b[0] != sequence {
			break
		}
		if len(chain) == maxChain {
			return chain, fmt.Errorf("it has more than %d certificates", maxChain)
		}
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(b, &raw)
		if err != nil {
			return chain, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		if len(raw.FullBytes) > maxNVSize {
			return chain, fmt.Errorf("certificate %d has more than %d bytes", len(chain)+1, maxNVSize)
		}
		if _, err := x509.ParseCertificate(raw.FullBytes); err != nil {
			return chain, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		chain = append(chain, raw.FullBytes)
		b = rest
	}
	return chain, nil
}
