package attestor

import (
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Bits of TPMA_OBJECT (TPM 2.0 library specification, part 2, 8.3).
const (
	attrFixedTPM            uint32 = 1 << 1
	attrFixedParent         uint32 = 1 << 4
	attrSensitiveDataOrigin uint32 = 1 << 5
	attrUserWithAuth        uint32 = 1 << 6
	attrAdminWithPolicy     uint32 = 1 << 7
	attrRestricted          uint32 = 1 << 16
	attrDecrypt             uint32 = 1 << 17
	attrSign                uint32 = 1 << 18
)

// hashFor returns the hash algorithm if it is strong enough for names and signatures:
// SHA-256, SHA-384 or SHA-512.
func hashFor(alg tpm2.TPMAlgID) (crypto.Hash, error) {
	switch alg {
	case tpm2.TPMAlgSHA256:
		return crypto.SHA256, nil
	case tpm2.TPMAlgSHA384:
		return crypto.SHA384, nil
	case tpm2.TPMAlgSHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("hash algorithm %#04x: want SHA-256, SHA-384 or SHA-512", uint16(alg))
}

var (
	errTruncated = errors.New("it ends too early")
	errTrailing  = errors.New("bytes follow its end")
)

// reader reads a TPM structure in its canonical form (part 2, 4.3): big endian, without
// padding. It keeps the first error, and everything read after an error is zero. So a
// caller reads a whole structure and checks for an error once. Slices that it returns
// point into its input.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

// take returns the next n bytes, or nil.
func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.fail(errTruncated)
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) alg() tpm2.TPMAlgID { return tpm2.TPMAlgID(r.u16()) }

// sized reads a TPM2B structure of at most limit bytes.
func (r *reader) sized(limit int) []byte {
	n := int(r.u16())
	if n > limit {
		r.fail(fmt.Errorf("a field of %d bytes, at most %d are allowed", n, limit))
		return nil
	}
	return r.take(n)
}

// end returns the first error, or errTrailing if bytes are left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		return errTrailing
	}
	return r.err
}
