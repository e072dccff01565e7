package sources

import (
	"encoding/hex"
	"fmt"
)

// An EKHash is a TPM's identity: the SHA-256 of the DER SubjectPublicKeyInfo (RFC 5280,
// 4.1.2.7) of its endorsement key. Its text form is 64 hex digits.
type EKHash [32]byte

// ParseEKHash reads 64 hex digits of either case and nothing else.
func ParseEKHash(s string) (EKHash, error) {
	var h EKHash
	if err := h.UnmarshalText([]byte(s)); err != nil {
		return EKHash{}, err
	}
	return h, nil
}

// String returns 64 lower-case hex digits.
func (h EKHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements [encoding.TextMarshaler]: the text is that of String.
func (h EKHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. It accepts what ParseEKHash accepts, and
// leaves h unchanged if it returns an error.
func (h *EKHash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("%d characters instead of a hash's %d hex digits", len(text), hex.EncodedLen(len(h)))
	}
	var read EKHash
	if _, err := hex.Decode(read[:], text); err != nil {
		return fmt.Errorf("%d characters that are not all hex digits", len(text))
	}
	*h = read
	return nil
}
