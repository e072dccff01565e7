package tpm

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// The NV indices of the EK certificate chain (profile, 2.2.1.5.2). Some TPMs issue
// their EK certificate themselves and hold the CA certificates for it: in DER,
// concatenated, and cut into as many indices as they need.
const (
	firstChainIndex tpm2.TPMHandle = 0x01C00100
	lastChainIndex  tpm2.TPMHandle = 0x01C001FF
)

const (
	// maxChainSize is the size of the longest chain that is read, in bytes. It
	// leaves room in a payload for everything else. Intel's chain has about 4000.
	maxChainSize = 24 << 10
	// maxChain is how many certificates of a chain fit into a payload.
	maxChain = 16
)

// readChain returns the certificates of the chain in the order in which the TPM holds
// them. If part of the chain cannot be read, it returns the certificates before that
// part and an error. The machine attests in spite of that error, since the server may
// have the certificates itself.
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
			chain, _ := splitCertificates(all) // err matters more
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

// retryChain reads the chain again if part of it could not be read before: the cause may be gone. It returns an
// error only if the connection fails.
func (t *TPM) retryChain(c *conn, inv *inventory) error {
	if inv.chainErr == nil {
		return nil
	}
	inv.chain, inv.chainErr = t.readChain(c, inv.indices, inv.caps.nvBuffer)
	return explain("read the EK certificate chain", c.err)
}

// splitCertificates returns the concatenated certificates in b. After the last one there
// may be padding, which does not begin like a certificate and is ignored. If there is no
// certificate at all, only padding that begins with 0x00 or 0xFF is accepted.
func splitCertificates(b []byte) ([][]byte, error) {
	const sequence = 0x30 // the first byte of a certificate
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
