package tpm

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// devIDTypes are the types of key that a DevID may have, P-256 first: a TPM makes it at once.
var devIDTypes = [...]attestor.KeyType{
	attestor.P256, attestor.P384, attestor.RSA2048, attestor.RSA3072, attestor.RSA4096,
}

// ParseDevIDKey returns the type of a DevID's key for the word s: "p256", "p384", "rsa2048",
// "rsa3072" or "rsa4096".
func ParseDevIDKey(s string) (attestor.KeyType, error) {
	if t := attestor.KeyType(s); slices.Contains(devIDTypes[:], t) {
		return t, nil
	}
	var words []string
	for _, t := range devIDTypes {
		words = append(words, string(t))
	}
	return "", fmt.Errorf("%q is not a type of DevID key: use one of %s", s, strings.Join(words, ", "))
}

// ParseHandle returns the handle of a persistent key for a word such as "0x81000010".
func ParseHandle(s string) (uint32, error) {
	h, err := (&DevIDConfig{Handle: s}).handle()
	return uint32(h), err
}

// CreateDevID makes a key for a DevID in the TPM. It returns the private and the public area for the files
// DevIDConfig.PrivPath and PubPath, without sizes. The key's parent is the SRK from the template for the key's
// type. The key signs by the usual scheme of its type, and does not stay in the TPM. If password is not empty, it
// authorizes the use of the key.
func (t *TPM) CreateDevID(ctx context.Context, keyType attestor.KeyType, password string) (
	private, public []byte, err error,
) {
	if err := checkPassword(password); err != nil {
		return nil, nil, err
	}
	template, err := devIDTemplate(keyType)
	if err != nil {
		return nil, nil, err
	}
	template.ObjectAttributes.NoDA = password == ""
	c, err := t.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer c.close()
	defer unreadable(&err)
	srk, err := t.createSRK(c, srkTemplates(template.Type)[0])
	if err != nil {
		return nil, nil, err
	}
	defer srk.flush(c)
	rsp, err := execute(c, tpm2.Create{
		ParentHandle: srk.authorized(tpm2.PasswordAuth(nil)),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			UserAuth: tpm2.TPM2BAuth{Buffer: []byte(password)},
		}},
		InPublic: tpm2.New2B(template),
	})
	if isUnsupported(err) {
		return nil, nil, setup(fmt.Errorf("make the DevID's key: %w", err),
			"this TPM cannot make a key of type "+string(keyType)+": choose another")
	}
	if err != nil {
		return nil, nil, explain("make the DevID's key", err)
	}
	return rsp.OutPrivate.Buffer, rsp.OutPublic.Bytes(), nil
}

// devIDTemplate returns the template of a DevID's key, which is made in the TPM, cannot leave it, and signs any
// digest.
func devIDTemplate(keyType attestor.KeyType) (tpm2.TPMTPublic, error) {
	p := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
		},
	}
	bits := map[attestor.KeyType]tpm2.TPMKeyBits{
		attestor.RSA2048: 2048, attestor.RSA3072: 3072, attestor.RSA4096: 4096,
	}
	curve, hash := tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256
	switch keyType {
	case attestor.RSA2048, attestor.RSA3072, attestor.RSA4096:
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = rsassaParms(bits[keyType], hash)
		return p, nil
	case attestor.P256:
	case attestor.P384:
		curve, hash = tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384
	default:
		return p, fmt.Errorf("no template for a DevID's key of the type %s", keyType)
	}
	p.Type = tpm2.TPMAlgECC
	p.Parameters = ecdsaParms(curve, hash)
	return p, nil
}

// BeginEnrolment is Begin for a DevID in files that has no certificate yet. It makes the same AK every time for the
// same DevID, even after a restart of the machine. So the challenge may arrive in a file at any time, and nothing
// about the AK has to be kept. No server accepts this AK in an attestation.
func (t *TPM) BeginEnrolment(ctx context.Context, config DevIDConfig) (*Attestation, error) {
	d, err := t.readUncertified(&config)
	if err != nil {
		return nil, err
	}
	unique := sha256.Sum256(append([]byte("spire-tpm-attestor enrolment 1\x00"), d.public...))
	a, err := t.begin(ctx, d, akForm{unique[:], attestor.EnrolmentPolicy()})
	if err != nil {
		return nil, err
	}
	a.Claim.Can = append(a.Claim.Can, attestor.CanDevID)
	return a, nil
}

// readUncertified reads the files of a DevID that has no certificate.
func (t *TPM) readUncertified(config *DevIDConfig) (*devID, error) {
	d := &devID{config: config}
	public, err := d.readKeyFiles()
	if err != nil {
		return nil, err
	}
	if key, err := attestor.ReadDevIDKey(public); err == nil { // otherwise takeDevIDKey says so
		d.leaf, t.devID.leaf = key.Public, key.Public
	}
	return d, t.takeDevIDKey(d, public, "the key in "+config.PubPath)
}

// CertificateRequest returns a certificate request (PKCS #10) in DER, signed by the DevID's key with that key's
// signature algorithm. The content is that of template.
func (a *Attestation) CertificateRequest(ctx context.Context, template *x509.CertificateRequest) ([]byte, error) {
	var der []byte
	return der, a.withDevID(ctx, func(c *conn, k *key) (err error) {
		s := &devIDSigner{c: c, key: k, devID: a.devID}
		request := *template
		if request.SignatureAlgorithm, err = s.algorithm(); err != nil {
			return err
		}
		if der, err = x509.CreateCertificateRequest(rand.Reader, &request, s); err != nil {
			return a.tpm.explainDevID(a.devID, "sign the certificate request", err)
		}
		return nil
	})
}

// MakePersistent makes the DevID's key persistent at a handle, for a machine that cannot keep the key in files. If
// the same key is there already, nothing changes.
func (a *Attestation) MakePersistent(ctx context.Context, handle uint32) error {
	h := tpm2.TPMHandle(handle)
	return a.withDevID(ctx, func(c *conn, k *key) error {
		there, err := readPersistent(c, h)
		switch {
		case err != nil:
			return err
		case there != nil && slices.Equal(there.Name.Buffer, k.name.Buffer):
			return nil
		case there != nil:
			return setup(fmt.Errorf("make the DevID's key persistent: another key is at %#x", handle),
				"choose another handle, or remove that key (tpm2_evictcontrol)")
		}
		_, err = execute(c, tpm2.EvictControl{
			Auth:             a.tpm.owner(),
			ObjectHandle:     &tpm2.NamedHandle{Handle: k.handle, Name: k.name},
			PersistentHandle: h,
		})
		return explain("make the DevID's key persistent", err,
			remedy{tpm2.TPMRCBadAuth, ErrSetup, wrongOwner},
			remedy{tpm2.TPMRCAuthFail, ErrSetup, wrongOwner},
			remedy{tpm2.TPMRCRange, ErrSetup, "choose a handle of the owner's, from 0x81000000 to 0x817fffff"},
			remedy{tpm2.TPMRCNVSpace, ErrSetup, "the TPM has no room for another persistent key: remove one"})
	})
}

// withDevID calls f with the DevID's key loaded. The key does not stay in the TPM.
func (a *Attestation) withDevID(ctx context.Context, f func(*conn, *key) error) (err error) {
	if a.devID == nil {
		return errors.New("there is no DevID")
	}
	c, err := a.tpm.connect(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	defer unreadable(&err)
	k, err := a.tpm.loadDevID(c, a.devID)
	if err != nil {
		return err
	}
	defer k.flush(c)
	return f(c, k)
}

// devIDSigner is a DevID's key as a crypto.Signer.
type devIDSigner struct {
	c     *conn
	key   *key
	devID *devID
}

// Public implements crypto.Signer.
func (s *devIDSigner) Public() crypto.PublicKey { return s.devID.scheme.Public }

// algorithm returns the signature algorithm of the key in X.509.
func (s *devIDSigner) algorithm() (x509.SignatureAlgorithm, error) {
	type how struct{ scheme, hash tpm2.TPMAlgID }
	algorithms := map[how]x509.SignatureAlgorithm{
		{tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256}: x509.SHA256WithRSA,
		{tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA384}: x509.SHA384WithRSA,
		{tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA512}: x509.SHA512WithRSA,
		{tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256}:  x509.ECDSAWithSHA256,
		{tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA384}:  x509.ECDSAWithSHA384,
		{tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA512}:  x509.ECDSAWithSHA512,
	}
	algorithm, ok := algorithms[how{s.devID.scheme.Scheme, s.devID.scheme.Hash}]
	if !ok {
		return 0, setup(errors.New("the DevID's key signs by RSASSA-PSS"),
			"have the certificate issued without a certificate request, or use a key that signs by RSASSA")
	}
	return algorithm, nil
}

// Sign implements crypto.Signer.
func (s *devIDSigner) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	sig, err := s.devID.signDigest(s.c, s.key, digest)
	if err != nil {
		return nil, err
	}
	if sig.SigAlg == tpm2.TPMAlgRSASSA {
		rsa, err := sig.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return rsa.Sig.Buffer, nil
	}
	ecdsa, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(ecdsa.SignatureR.Buffer), new(big.Int).SetBytes(ecdsa.SignatureS.Buffer),
	})
}

// DevIDKeyType returns the type of the DevID's key, or an empty string if there is no DevID.
func (a *Attestation) DevIDKeyType() attestor.KeyType {
	if a.devID == nil {
		return ""
	}
	t, err := attestor.KeyTypeOf(a.devID.scheme.Public)
	if err != nil {
		return ""
	}
	return t
}
