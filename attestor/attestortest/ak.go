package attestortest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// createAK makes an AK and the result of TPM2_CertifyCreation for it.
func (t *TPM) createAK(o Options) error {
	key, err := akKey(o.AK)
	if err != nil {
		return err
	}
	public := akPublic(key, o.PSS)
	if o.ForgePublic != nil {
		o.ForgePublic(&public)
	}
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return fmt.Errorf("name the AK: %w", err)
	}
	nameHash, err := public.NameAlg.Hash()
	if err != nil {
		return err
	}
	data := creationData()
	if o.ForgeCreation != nil {
		o.ForgeCreation(&data)
	}
	ak := &t.claim.AK
	ak.Public = tpm2.Marshal(&public)
	ak.CreateData = tpm2.Marshal(&data)
	attest := creationAttest(name.Buffer, digest(nameHash, ak.CreateData))
	if o.ForgeAttest != nil {
		o.ForgeAttest(&attest)
	}
	ak.CreateAttestation = tpm2.Marshal(&attest)
	t.ak, t.akName = key, name.Buffer
	ak.CreateSignature, err = sign(key, o.PSS, ak.CreateAttestation)
	return err
}

// SignAK returns a TPMT_SIGNATURE of msg by a key in software, in the form of an AK's
// signature. This is what an attacker without a TPM can make.
func SignAK(tb TB, key crypto.Signer, msg []byte) []byte {
	tb.Helper()
	sig, err := sign(key, false, msg)
	if err != nil {
		tb.Fatalf("attestortest: %v", err)
	}
	return sig
}

// akPublic returns the public area of an AK made from the template that agents use.
func akPublic(key crypto.Signer, pss bool) tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			Restricted:          true,
			SignEncrypt:         true,
		},
		Unique: uniqueOf(key.Public()),
	}
	switch pub := key.Public().(type) {
	case *rsa.PublicKey:
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{
			Scheme:  rsaScheme(pss),
			KeyBits: tpm2.TPMKeyBits(pub.N.BitLen()),
		})
	case *ecdsa.PublicKey:
		p.Type = tpm2.TPMAlgECC
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA,
					&tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: curveID(pub),
		})
	}
	return p
}

func rsaScheme(pss bool) tpm2.TPMTRSAScheme {
	scheme := tpm2.TPMAlgRSASSA
	if pss {
		scheme = tpm2.TPMAlgRSAPSS
	}
	return tpm2.TPMTRSAScheme{Scheme: scheme, Details: asymScheme(scheme, tpm2.TPMAlgSHA256)}
}

func asymScheme(scheme, hash tpm2.TPMAlgID) tpm2.TPMUAsymScheme {
	switch scheme {
	case tpm2.TPMAlgRSAPSS:
		return tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: hash})
	case tpm2.TPMAlgECDSA:
		return tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})
	default:
		return tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash})
	}
}

func curveID(pub *ecdsa.PublicKey) tpm2.TPMECCCurve {
	switch pub.Curve {
	case curveOf(attestor.P384):
		return tpm2.TPMECCNistP384
	case curveOf(attestor.P521):
		return tpm2.TPMECCNistP521
	default:
		return tpm2.TPMECCNistP256
	}
}

func uniqueOf(pub crypto.PublicKey) tpm2.TPMUPublicID {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pub.N.Bytes()})
	case *ecdsa.PublicKey:
		size := (pub.Curve.Params().BitSize + 7) / 8
		point, err := pub.Bytes()
		if err != nil {
			return tpm2.TPMUPublicID{}
		}
		return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+size]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[1+size:]},
		})
	default:
		return tpm2.TPMUPublicID{}
	}
}

// creationData returns the creation data of a primary key in the owner's hierarchy.
func creationData() tpm2.TPMSCreationData {
	owner := tpm2.HandleName(tpm2.TPMRHOwner)
	empty := crypto.SHA256.New().Sum(nil)
	return tpm2.TPMSCreationData{
		PCRDigest:           tpm2.TPM2BDigest{Buffer: empty},
		Locality:            tpm2.TPMALocality{TPMLocZero: true},
		ParentNameAlg:       tpm2.TPMAlgNull,
		ParentName:          owner,
		ParentQualifiedName: owner,
	}
}

func creationAttest(name, hash []byte) tpm2.TPMSAttest {
	return tpm2.TPMSAttest{
		Magic:           tpm2.TPMGeneratedValue,
		Type:            tpm2.TPMSTAttestCreation,
		QualifiedSigner: tpm2.TPM2BName{Buffer: name},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: 1000, ResetCount: 1, Safe: true},
		FirmwareVersion: 1,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{
			ObjectName:   tpm2.TPM2BName{Buffer: name},
			CreationHash: tpm2.TPM2BDigest{Buffer: hash},
		}),
	}
}

// sign returns a TPMT_SIGNATURE with SHA-256.
func sign(key crypto.Signer, pss bool, msg []byte) ([]byte, error) {
	scheme := tpm2.TPMAlgRSASSA
	if pss {
		scheme = tpm2.TPMAlgRSAPSS
	}
	return signWith(key, scheme, tpm2.TPMAlgSHA256, msg)
}

// signWith returns a TPMT_SIGNATURE. The scheme matters for RSA keys alone.
func signWith(key crypto.Signer, scheme, hashAlg tpm2.TPMAlgID, msg []byte) ([]byte, error) {
	hash, err := hashAlg.Hash()
	if err != nil {
		return nil, err
	}
	sum := digest(hash, msg)
	sig := tpm2.TPMTSignature{}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		opts := crypto.SignerOpts(hash)
		if scheme == tpm2.TPMAlgRSAPSS {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}
		}
		b, err := key.Sign(rand.Reader, sum, opts)
		if err != nil {
			return nil, err
		}
		sig.SigAlg = scheme
		sig.Signature = tpm2.NewTPMUSignature(scheme, &tpm2.TPMSSignatureRSA{
			Hash: hashAlg,
			Sig:  tpm2.TPM2BPublicKeyRSA{Buffer: b},
		})
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, sum)
		if err != nil {
			return nil, err
		}
		sig.SigAlg = tpm2.TPMAlgECDSA
		sig.Signature = tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       hashAlg,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: s.Bytes()},
		})
	default:
		return nil, fmt.Errorf("a key of the type %T", key)
	}
	return tpm2.Marshal(&sig), nil
}

func digest(hash crypto.Hash, b []byte) []byte {
	h := hash.New()
	h.Write(b)
	return h.Sum(nil)
}
