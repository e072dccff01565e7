package attestor

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
)

// ParseEKPublic returns the endorsement key in a TPMT_PUBLIC (part 2, 12.2.4) or a TPM2B_PUBLIC
// (part 2, 12.2.5), the same structure after a size field of two bytes, which tools write to files.
// The key is an *rsa.PublicKey or an *ecdsa.PublicKey and was made from a known template.
func ParseEKPublic(b []byte) (crypto.PublicKey, error) {
	const sizeBytes = 2
	if len(b) > sizeBytes && int(binary.BigEndian.Uint16(b)) == len(b)-sizeBytes {
		b = b[sizeBytes:]
	}
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	area, err := readPublic(b)
	if err != nil {
		return nil, fmt.Errorf("read the TPMT_PUBLIC: %w", err)
	}
	key, err := area.key()
	if err != nil {
		return nil, fmt.Errorf("read the TPMT_PUBLIC: %w", err)
	}
	if _, err := findTemplate(key, b); err != nil {
		return nil, err
	}
	return key, nil
}
