package attestortest

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// DevID describes a DevID: a key in the TPM and its certificate. It needs a CA; otherwise the zero
// value stands for a P-256 key without a scheme.
type DevID struct {
	// CA issues the certificate.
	CA *CA
	// Above are the authorities whose certificates follow it in the chain.
	Above []*CA
	// Certificate says how the certificate is made. Its OAEP is not used.
	Certificate Certificate
	// Type is the key's type. The default is P256. ECC keys are new ones; all DevIDs with the same
	// RSA type have the same key.
	Type attestor.KeyType
	// Fixed makes an ECC key the same in every process, too: a fuzzer makes its seeds in one
	// process and tries them in another.
	Fixed bool
	// Scheme and Hash are the key's scheme; by default it has none.
	Scheme, Hash tpm2.TPMAlgID

	// The lies of the TPM. ForgePublic changes the key's public area before it is named, and
	// ForgeCertify its certification before it is signed.
	ForgePublic  func(*tpm2.TPMTPublic)
	ForgeCertify func(*tpm2.TPMSAttest)
}

// devID is a DevID that has been made.
type devID struct {
	key    privateKey
	scheme tpm2.TPMAlgID // with which it signs
	hash   tpm2.TPMAlgID
	public tpm2.TPMTPublic
	chain  [][]byte
}

// IssueDevID returns a DevID's certificate for pub in DER. It has the subject of a device and is
// valid until 9999 (IEEE 802.1AR, 8).
func (ca *CA) IssueDevID(tb TB, pub crypto.PublicKey, c Certificate) []byte {
	tb.Helper()
	return ca.Issue(tb, pub, Certificate{Change: func(t *x509.Certificate) {
		t.Subject = pkix.Name{CommonName: "device", Organization: []string{"attestortest"}, SerialNumber: "SN-1"}
		t.KeyUsage = x509.KeyUsageDigitalSignature
		t.UnknownExtKeyUsage, t.ExtraExtensions = nil, nil
		if c.Change != nil {
			c.Change(t)
		}
	}})
}

// createDevID makes the DevID of o.
func (t *TPM) createDevID(tb TB, o *DevID) error {
	key, err := devIDKey(cmp.Or(o.Type, attestor.P256), o.Fixed)
	if err != nil {
		return err
	}
	d := &devID{key: key, scheme: o.Scheme, hash: o.Hash, public: devIDPublic(key, o)}
	if d.scheme == 0 {
		d.scheme, d.hash = tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256
	}
	if o.ForgePublic != nil {
		o.ForgePublic(&d.public)
	}
	d.chain = [][]byte{o.CA.IssueDevID(tb, key.Public(), o.Certificate)}
	for _, ca := range o.Above {
		d.chain = append(d.chain, ca.Certificate.Raw)
	}
	t.devID = d
	t.claim.Can = append(t.claim.Can, attestor.CanDevID)
	return nil
}

func devIDKey(t attestor.KeyType, fixed bool) (privateKey, error) {
	switch curve := curveOf(t); {
	case curve != nil && fixed:
		return eccKey(curve, "DevID", 0)
	case curve != nil:
		return akKey(t)
	}
	number := map[attestor.KeyType]int{attestor.RSA2048: 10}
	return rsaKey(t, number[t])
}

// devIDPublic returns the public area of a key that signs anything.
func devIDPublic(key privateKey, o *DevID) tpm2.TPMTPublic {
	p := akPublic(key, false)
	p.ObjectAttributes.Restricted, p.ObjectAttributes.NoDA = false, false
	scheme, details := tpm2.TPMAlgNull, tpm2.TPMUAsymScheme{}
	if o.Scheme != 0 {
		scheme, details = o.Scheme, asymScheme(o.Scheme, o.Hash)
	}
	switch pub := key.Public().(type) {
	case *rsa.PublicKey:
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{
			Scheme:  tpm2.TPMTRSAScheme{Scheme: scheme, Details: details},
			KeyBits: tpm2.TPMKeyBits(pub.N.BitLen()),
		})
	case *ecdsa.PublicKey:
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSECCParms{
			Scheme:  tpm2.TPMTECCScheme{Scheme: scheme, Details: details},
			CurveID: curveID(pub),
		})
	}
	return p
}

// DevIDKey returns the DevID's private key, or nil.
func (t *TPM) DevIDKey() crypto.Signer {
	if t.devID == nil {
		return nil
	}
	return t.devID.key
}

// DevID returns the DevID and makes its proof: TPM2_Certify by the AK and TPM2_Sign (TPM 2.0
// library specification, part 3, 18.2 and 20.2). It returns nil if the TPM has none.
func (t *TPM) DevID(req *attestor.DevIDRequest) (*attestor.SignedDevID, error) {
	d := t.devID
	if d == nil {
		return nil, nil //nolint:nilnil // a machine without a DevID
	}
	attest, err := t.certify(&d.public, req.QualifyingData, t.options.DevID.ForgeCertify)
	if err != nil {
		return nil, err
	}
	s := &attestor.SignedDevID{Chain: slices.Clone(d.chain), Public: tpm2.Marshal(&d.public), Attest: attest}
	if s.AttestSignature, err = sign(t.ak, t.options.PSS, s.Attest); err != nil {
		return nil, err
	}
	s.Signature, err = signWith(d.key, d.scheme, d.hash, req.Message)
	return s, err
}
