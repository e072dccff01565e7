package attestor

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// tpmName is the TPM name of a key (part 1, 16): the identifier of its name
// algorithm and the digest of its public area.
type tpmName []byte

// signer is a TPM signing key whose public area is checked: an attestation key or a DevID's key.
type signer struct {
	public crypto.PublicKey
	name   tpmName
	// enrolment is true for an AK that was made for enrolments.
	enrolment bool

	scheme     tpm2.TPMAlgID
	schemeHash tpm2.TPMAlgID
}

// parseAK checks the parameters of an attestation key. They must state, in TPM structures signed by
// the key itself, that the key was created in a TPM, cannot leave it, and signs only what that TPM
// has made (TPM 2.0 library specification, part 1, 31.2 and 23.2).
//
// This proves nothing until the key is activated: anybody can sign such structures with
// a key in software.
func parseAK(p *AKParameters) (*signer, error) {
	area, err := readPublic(p.Public)
	if err != nil {
		return nil, fmt.Errorf("AK.Public: %w", err)
	}
	ak, err := area.attestationKey(p.Public)
	if err != nil {
		return nil, fmt.Errorf("AK.Public: %w", err)
	}
	nameHash, err := hashFor(area.nameAlg)
	if err != nil {
		return nil, err
	}
	if err := checkCreationData(p.CreateData); err != nil {
		return nil, fmt.Errorf("AK.CreateData: %w", err)
	}
	creation, err := readCreation(p.CreateAttestation)
	if err != nil {
		return nil, fmt.Errorf("AK.CreateAttestation: %w", err)
	}
	if !bytes.Equal(creation.name, ak.name) {
		return nil, errors.New("AK.CreateAttestation: it names a key other than AK.Public")
	}
	if !bytes.Equal(creation.hash, digest(nameHash, p.CreateData)) {
		return nil, errors.New("AK.CreateAttestation: it is about creation data other than AK.CreateData")
	}
	if err := ak.verify(p.CreateAttestation, p.CreateSignature); err != nil {
		return nil, fmt.Errorf("AK.CreateSignature: %w", err)
	}
	return ak, nil
}

// attestationKey returns the key in p, which was read from public. It returns an error if p is not
// the public area of an attestation key.
func (p *publicArea) attestationKey(public []byte) (*signer, error) {
	err := p.checkAttributes("an attestation key",
		attrFixedTPM|attrFixedParent|attrSensitiveDataOrigin|attrRestricted|attrSign, attrDecrypt)
	if err != nil {
		return nil, err
	}
	if p.scheme == tpm2.TPMAlgNull {
		return nil, errors.New("no signing scheme in a restricted key")
	}
	k, err := p.signer(public)
	if err != nil {
		return nil, err
	}
	k.enrolment = bytes.Equal(p.policy, EnrolmentPolicy())
	return k, nil
}

// EnrolmentPolicy returns the authPolicy of an AK that was made for enrolments: see
// Verifier.Enrolment. No policy has this digest; the AK is used with its password.
func EnrolmentPolicy() []byte {
	mark := sha256.Sum256([]byte("spire-tpm-attestor enrolment key 1"))
	return mark[:]
}

// checkAttributes checks that the attributes in set are set and those in unset are clear. of names
// the kind of key in errors: "an attestation key".
func (p *publicArea) checkAttributes(of string, set, unset uint32) error {
	for _, a := range []struct {
		bit  uint32
		name string
	}{
		{attrFixedTPM, "fixedTPM"},
		{attrFixedParent, "fixedParent"},
		{attrSensitiveDataOrigin, "sensitiveDataOrigin"},
		{attrUserWithAuth, "userWithAuth"},
		{attrRestricted, "restricted"},
		{attrDecrypt, "decrypt"},
		{attrSign, "sign"},
	} {
		switch {
		case set&a.bit != 0 && p.attributes&a.bit == 0:
			return fmt.Errorf("the attribute %s is clear in %s", a.name, of)
		case unset&a.bit != 0 && p.attributes&a.bit != 0:
			return fmt.Errorf("the attribute %s is set in %s", a.name, of)
		}
	}
	return nil
}

// signer returns the key in p, which was read from public and whose attributes the caller has
// checked. For a key without a scheme, it is RSASSA or ECDSA with SHA-256. SHA-1 is refused, both
// as the name algorithm and in the scheme.
func (p *publicArea) signer(public []byte) (*signer, error) {
	if p.symmetric != tpm2.TPMAlgNull {
		return nil, errors.New("a symmetric algorithm in a key that does not decrypt")
	}
	k := &signer{scheme: p.scheme, schemeHash: p.schemeHash}
	if k.scheme == tpm2.TPMAlgNull {
		if k.scheme = tpm2.TPMAlgRSASSA; p.typ == tpm2.TPMAlgECC {
			k.scheme = tpm2.TPMAlgECDSA
		}
		k.schemeHash = tpm2.TPMAlgSHA256
	}
	if (p.typ == tpm2.TPMAlgECC) != (k.scheme == tpm2.TPMAlgECDSA) {
		return nil, errors.New("the signing scheme does not fit the key's type")
	}
	if _, err := hashFor(k.schemeHash); err != nil {
		return nil, fmt.Errorf("signing scheme: %w", err)
	}
	nameHash, err := hashFor(p.nameAlg)
	if err != nil {
		return nil, fmt.Errorf("name algorithm: %w", err)
	}
	k.name = nameOf(p.nameAlg, nameHash, public)
	k.public, err = p.key()
	return k, err
}

// checkCreationData checks that b is a TPMS_CREATION_DATA (part 2, 15.1).
func checkCreationData(b []byte) error {
	r := &reader{b: b}
	if r.readPCRSelection(); r.err != nil {
		return r.err
	}
	r.sized(maxDigest) // pcrDigest
	r.u8()             // locality
	r.u16()            // parentNameAlg
	r.sized(maxName)   // parentName
	r.sized(maxName)   // parentQualifiedName
	r.sized(maxName)   // outsideInfo, a TPM2B_DATA
	return r.end()
}

// readPCRSelection skips a TPML_PCR_SELECTION (part 2, 10.9.7).
func (r *reader) readPCRSelection() {
	const maxBanks, maxSelect = 16, 4
	n := r.u32()
	if n > maxBanks {
		r.fail(fmt.Errorf("a selection of %d PCR banks, at most %d are allowed", n, maxBanks))
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		r.u16() // hash
		size := int(r.u8())
		if size > maxSelect {
			r.fail(fmt.Errorf("a PCR selection of %d bytes, at most %d are allowed", size, maxSelect))
		}
		r.take(size)
	}
}

// creation is a TPMS_CREATION_INFO (part 2, 10.12.6): what a TPM certifies about a key's
// creation.
type creation struct {
	name []byte
	hash []byte
}

// readCreation reads the TPMS_ATTEST (part 2, 10.12.12) of a key's creation.
func readCreation(b []byte) (*creation, error) {
	r := &reader{b: b}
	r.attest(tpm2.TPMSTAttestCreation, "a creation")
	c := &creation{name: r.sized(maxName), hash: r.sized(maxDigest)}
	if err := r.end(); err != nil {
		return nil, err
	}
	return c, nil
}

// attest reads a TPMS_ATTEST (part 2, 10.12.12) up to its attested field, and returns its
// extraData. The attestation must have the type want; of describes that type in errors.
func (r *reader) attest(want tpm2.TPMST, of string) (extraData []byte) {
	if magic := r.u32(); r.err == nil && magic != uint32(tpm2.TPMGeneratedValue) {
		r.fail(errors.New("it does not begin with TPM_GENERATED_VALUE"))
	}
	if typ := tpm2.TPMST(r.u16()); r.err == nil && typ != want {
		r.fail(fmt.Errorf("an attestation of the type %#04x: want that of %s", uint16(typ), of))
	}
	r.sized(maxName)              // qualifiedSigner
	extraData = r.sized(maxName)  // a TPM2B_DATA
	r.take(8 + 4 + 4)             // clock, resetCount, restartCount
	if safe := r.u8(); safe > 1 { // a TPMI_YES_NO
		r.fail(fmt.Errorf("the clock's safe flag is %d: want 0 or 1", safe))
	}
	r.take(8) // firmwareVersion
	return extraData
}

// errNotSigned means that a signature is well formed but is not the key's signature of the message.
var errNotSigned = errors.New("it is not the key's signature of this structure")

// verify checks the TPMT_SIGNATURE (part 2, 11.3.4) sig over msg. The signature must have the
// key's scheme and hash. The error wraps errNotSigned if the signature is well formed.
func (k *signer) verify(msg, sig []byte) error {
	r := &reader{b: sig}
	scheme, alg := r.alg(), r.alg()
	if r.err == nil && (scheme != k.scheme || alg != k.schemeHash) {
		return fmt.Errorf("%w: scheme %#04x with hash %#04x, the key's are %#04x and %#04x", errNotSigned,
			uint16(scheme), uint16(alg), uint16(k.scheme), uint16(k.schemeHash))
	}
	hash, err := hashFor(k.schemeHash)
	if err != nil {
		return err
	}
	valid := false
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		s := r.sized(maxRSABytes)
		if err := r.end(); err != nil {
			return err
		}
		valid = verifyRSA(pub, scheme, hash, digest(hash, msg), s)
	case *ecdsa.PublicKey:
		rb, sb := r.sized(maxECCBytes), r.sized(maxECCBytes)
		if err := r.end(); err != nil {
			return err
		}
		valid = ecdsa.Verify(pub, digest(hash, msg), new(big.Int).SetBytes(rb), new(big.Int).SetBytes(sb))
	}
	if !valid {
		return errNotSigned
	}
	return nil
}

func verifyRSA(pub *rsa.PublicKey, scheme tpm2.TPMAlgID, hash crypto.Hash, sum, sig []byte) bool {
	if scheme == tpm2.TPMAlgRSAPSS {
		return rsa.VerifyPSS(pub, hash, sum, sig, nil) == nil // the salt's length differs by TPM
	}
	return rsa.VerifyPKCS1v15(pub, hash, sum, sig) == nil
}

// nameOf returns the name of the object with the given TPMT_PUBLIC.
func nameOf(alg tpm2.TPMAlgID, hash crypto.Hash, public []byte) tpmName {
	return append(binary.BigEndian.AppendUint16(nil, uint16(alg)), digest(hash, public)...)
}

func digest(hash crypto.Hash, b []byte) []byte {
	h := hash.New()
	h.Write(b)
	return h.Sum(nil)
}
