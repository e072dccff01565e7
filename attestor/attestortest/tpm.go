package attestortest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Options describe a TPM. The zero value stands for an RSA 2048 EK by the template L-1, no
// EK certificate, and a P-256 AK.
type Options struct {
	// Number tells TPMs apart: TPMs with the same Number and EK type have the same
	// EK, in every process. Numbers begin at 0. There are 11 RSA 2048, 2 RSA 3072 and
	// 1 RSA 4096 EKs, and any number of ECC EKs.
	Number int
	// EK is the EK's type. The default is RSA2048.
	EK attestor.KeyType
	// HighRange makes an RSA 2048 or P-256 EK from the high-range template.
	HighRange bool
	// AK is the AK's type. The default is P256.
	AK attestor.KeyType
	// PSS makes an RSA AK sign by RSASSA-PSS.
	PSS bool
	// CA issues an EK certificate if it is not nil.
	CA *CA
	// Certificate says how the EK certificate is made.
	Certificate Certificate

	// PCRs makes the agent offer quotes, unless it is nil. It holds the PCR values that are not
	// zero, by bank ("sha256" or "sha384") and index.
	PCRs map[string]map[int][]byte
	// EventLog makes the agent offer the event log, unless it is nil. If it is empty, the
	// machine has none.
	EventLog []byte
	// DevID gives the TPM a DevID, which the agent offers, unless it is nil.
	DevID *DevID
	// SVIDKey gives the TPM an SVID key, which the agent sends, unless it is nil.
	SVIDKey *SVIDKey

	// The lies of the TPM. Each function changes a structure of the AK before it is
	// named, digested and signed, so that everything else stays consistent.
	ForgePublic   func(*tpm2.TPMTPublic)
	ForgeCreation func(*tpm2.TPMSCreationData)
	ForgeAttest   func(*tpm2.TPMSAttest)
	// ForgeQuote changes a quote before it is signed.
	ForgeQuote func(*tpm2.TPMSAttest)
}

// TPM is a TPM in software in which an EK and an AK are loaded. It is safe for
// concurrent use.
type TPM struct {
	ek       privateKey
	ekPublic tpm2.TPMTPublic
	ak       privateKey
	akName   []byte
	devID    *devID   // or nil
	svidKey  *svidKey // or nil
	claim    attestor.Claim
	options  Options
}

var _ attestor.Activator = (*TPM)(nil)

// New returns a TPM.
func New(tb TB, o Options) *TPM {
	tb.Helper()
	t, err := newTPM(o)
	if err != nil {
		tb.Fatalf("attestortest: %v", err)
		return nil
	}
	if o.CA != nil {
		t.claim.Certificate = o.CA.Issue(tb, t.claim.EK, o.Certificate)
	}
	if o.DevID != nil {
		if err := t.createDevID(tb, o.DevID); err != nil {
			tb.Fatalf("attestortest: %v", err)
		}
	}
	if o.SVIDKey != nil {
		if err := t.createSVIDKey(o.SVIDKey); err != nil {
			tb.Fatalf("attestortest: %v", err)
		}
	}
	return t
}

// Claim returns what an agent states about the TPM. It is a copy, which the caller may change.
func (t *TPM) Claim() attestor.Claim {
	c := t.claim
	for _, b := range []*[]byte{
		&c.EKPublic, &c.Certificate,
		&c.AK.Public, &c.AK.CreateData, &c.AK.CreateAttestation, &c.AK.CreateSignature,
	} {
		*b = append([]byte(nil), *b...)
	}
	c.Can = slices.Clone(c.Can)
	return c
}

// EKHash returns the EK hash in 64 lower-case hex digits, as lists have it.
func (t *TPM) EKHash() string {
	hash, err := attestor.HashEK(t.claim.EK)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(hash[:])
}

// EKPrivate returns the private EK, an *rsa.PrivateKey or an *ecdsa.PrivateKey.
func (t *TPM) EKPrivate() crypto.Signer { return t.ek }

// Payload returns the payload message of the agent.
func (t *TPM) Payload(tb TB) []byte {
	tb.Helper()
	b, err := attestor.NewProver(t.Claim(), t).Payload()
	if err != nil {
		tb.Fatalf("attestortest: %v", err)
	}
	return b
}

// Answer returns the agent's response to a challenge.
func (t *TPM) Answer(tb TB, challenge []byte) []byte {
	tb.Helper()
	b, err := attestor.NewProver(t.Claim(), t).Answer(challenge)
	if err != nil {
		tb.Fatalf("attestortest: %v", err)
	}
	return b
}

func newTPM(o Options) (*TPM, error) {
	if o.EK == "" {
		o.EK = attestor.RSA2048
	}
	if o.AK == "" {
		o.AK = attestor.P256
	}
	ek, err := ekKey(o.EK, o.Number)
	if err != nil {
		return nil, err
	}
	t := &TPM{ek: ek, options: o}
	found := false
	for _, tmpl := range attestor.EKTemplates() {
		if tmpl.KeyType == o.EK && (!found || o.HighRange) {
			t.ekPublic, found = tmpl.Public, true
		}
	}
	t.ekPublic.Unique = uniqueOf(ek.Public())
	t.claim.EK = ek.Public()
	t.claim.EKPublic = tpm2.Marshal(&t.ekPublic)
	if o.PCRs != nil {
		t.claim.Can = append(t.claim.Can, attestor.CanPCRs)
	}
	if o.EventLog != nil {
		t.claim.Can = append(t.claim.Can, attestor.CanEventLog)
	}
	if err := t.createAK(o); err != nil {
		return nil, err
	}
	return t, nil
}

// Activate implements attestor.Activator.
func (t *TPM) Activate(a *attestor.Activation) (*attestor.Activated, error) {
	secret, err := t.ActivateCredential(a.Credential, a.Secret)
	if err != nil {
		return nil, err
	}
	done := &attestor.Activated{Secret: secret}
	if a.Quote != nil {
		if done.Quote, err = t.Quote(a.Quote, a.QualifyingData); err != nil {
			return nil, err
		}
	}
	if a.DevID != nil {
		if done.DevID, err = t.DevID(a.DevID); err != nil {
			return nil, err
		}
	}
	if done.SVIDKey, err = t.CertifySVIDKey(attestor.SVIDKeyData(secret)); err != nil {
		return nil, err
	}
	if a.EventLog {
		done.EventLog = bytes.Clone(t.options.EventLog)
	}
	return done, nil
}

// ActivateCredential is TPM2_ActivateCredential (TPM 2.0 library specification,
// part 3, 12.5, and part 1, 24 and annexes B.10.4 and C.6.1).
func (t *TPM) ActivateCredential(credential, secret []byte) ([]byte, error) {
	hash, err := t.ekPublic.NameAlg.Hash()
	if err != nil {
		return nil, err
	}
	seed, err := t.seed(hash, secret)
	if err != nil {
		return nil, err
	}
	mac, identity, err := cutSized(credential)
	if err != nil {
		return nil, err
	}
	h := hmac.New(hash.New, tpm2.KDFa(hash, seed, "INTEGRITY", nil, nil, hash.Size()*8))
	h.Write(identity)
	h.Write(t.akName)
	if !hmac.Equal(h.Sum(nil), mac) {
		return nil, tpm2.TPMRCIntegrity
	}
	block, err := aes.NewCipher(tpm2.KDFa(hash, seed, "STORAGE", t.akName, nil, t.aesBits()))
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(identity))
	//nolint:staticcheck // SA1019: CFB is what part 1, 24.4 asks for; the HMAC above authenticates.
	cipher.NewCFBDecrypter(block, make([]byte, block.BlockSize())).XORKeyStream(plain, identity)
	value, rest, err := cutSized(plain)
	if err != nil || len(rest) > 0 {
		return nil, tpm2.TPMRCSize
	}
	return value, nil
}

func (t *TPM) aesBits() int {
	if t.ekPublic.NameAlg == tpm2.TPMAlgSHA256 {
		return 128
	}
	return 256
}

func (t *TPM) seed(hash crypto.Hash, secret []byte) ([]byte, error) {
	switch ek := t.ek.(type) {
	case *rsa.PrivateKey:
		return rsa.DecryptOAEP(hash.New(), nil, ek, secret, []byte("IDENTITY\x00"))
	case *ecdsa.PrivateKey:
		return eccSeed(hash, ek, secret)
	default:
		return nil, fmt.Errorf("an EK of the type %T", ek)
	}
}

func eccSeed(hash crypto.Hash, ek *ecdsa.PrivateKey, secret []byte) ([]byte, error) {
	x, rest, err := cutSized(secret)
	if err != nil {
		return nil, err
	}
	y, rest, err := cutSized(rest)
	if err != nil || len(rest) > 0 {
		return nil, tpm2.TPMRCSize
	}
	size := (ek.Curve.Params().BitSize + 7) / 8
	if len(x) > size || len(y) > size {
		return nil, tpm2.TPMRCSize
	}
	point := append([]byte{4}, new(big.Int).SetBytes(x).FillBytes(make([]byte, size))...)
	point = append(point, new(big.Int).SetBytes(y).FillBytes(make([]byte, size))...)
	key, err := ek.ECDH()
	if err != nil {
		return nil, err
	}
	peer, err := key.Curve().NewPublicKey(point)
	if err != nil {
		return nil, tpm2.TPMRCECCPoint
	}
	z, err := key.ECDH(peer)
	if err != nil {
		return nil, err
	}
	own := key.PublicKey().Bytes()[1 : 1+size]
	return tpm2.KDFe(hash, z, "IDENTITY", point[1:1+size], own, hash.Size()*8), nil
}

// cutSized returns the content of the TPM2B structure at the start of b, and what follows it.
func cutSized(b []byte) (value, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errors.New("no size field")
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > len(b)-2 {
		return nil, nil, tpm2.TPMRCInsufficient
	}
	return b[2 : 2+n], b[2+n:], nil
}
