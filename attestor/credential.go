package attestor

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA384 and crypto.SHA512
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// The labels of part 1, 24.4, 24.5, B.10.4 and C.6.4.
const (
	labelIdentity  = "IDENTITY"
	labelStorage   = "STORAGE"
	labelIntegrity = "INTEGRITY"
)

// makeCredential is TPM2_MakeCredential (part 3, 12.6; part 1, 24): it encrypts
// secret to the endorsement key pub, made from t, in such a way that its TPM
// gives it out only where it holds the key named name too.
//
// It is written out because it is most of what a server computes:
// tpm2.CreateCredential, which a test holds it against, spends another seventh of
// the time of a P-256 key on encoding by reflection.
func makeCredential(t *template, pub crypto.PublicKey, name akName, secret []byte) (*encryptedCredential, error) {
	hash, err := hashFor(t.nameAlg)
	if err != nil {
		return nil, err
	}
	seed, encrypted, err := makeSeed(hash, pub)
	if err != nil {
		return nil, fmt.Errorf("encrypt a seed to the endorsement key: %w", err)
	}
	block, err := aes.NewCipher(kdfa(hash, seed, labelStorage, name, t.aesBits))
	if err != nil {
		return nil, fmt.Errorf("make a storage key: %w", err)
	}
	identity := appendSized(nil, secret)
	iv := make([]byte, aes.BlockSize)
	// Part 1, 24.4 asks for CFB from zeros. The key serves once; the HMAC below authenticates.
	//nolint:staticcheck,gosec // SA1019, G407: see above.
	cipher.NewCFBEncrypter(block, iv).XORKeyStream(identity, identity)

	mac := hmac.New(hash.New, kdfa(hash, seed, labelIntegrity, nil, hash.Size()*8))
	mac.Write(identity)
	mac.Write(name)
	object := append(appendSized(nil, mac.Sum(nil)), identity...) // TPMS_ID_OBJECT
	return &encryptedCredential{
		Credential: appendSized(nil, object),
		Secret:     appendSized(nil, encrypted),
	}, nil
}

// kdfa derives a key from seed (part 1, 11.4.10.2: KDFa), of whole bytes and at
// most the length of hash: one round of tpm2.KDFa, which a test holds it against.
func kdfa(hash crypto.Hash, seed []byte, label string, context []byte, bits int) []byte {
	in := make([]byte, 0, 4+len(labelIntegrity)+1+maxName+4)
	in = binary.BigEndian.AppendUint32(in, 1) // the round
	in = append(append(in, label...), 0)
	in = append(in, context...)
	in = binary.BigEndian.AppendUint32(in, uint32(bits))
	mac := hmac.New(hash.New, seed)
	mac.Write(in)
	return mac.Sum(nil)[:bits/8]
}

// makeSeed returns a new seed, of the length of hash, and what an endorsement
// key with that name algorithm decrypts to it.
func makeSeed(hash crypto.Hash, pub crypto.PublicKey) (seed, encrypted []byte, err error) {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return rsaSeed(hash, pub)
	case *ecdsa.PublicKey:
		return eccSeed(hash, pub)
	}
	return nil, nil, errors.New("a key of an unknown type")
}

// rsaSeed encrypts by RSAES-OAEP (part 1, B.10.4).
func rsaSeed(hash crypto.Hash, pub *rsa.PublicKey) (seed, encrypted []byte, err error) {
	seed = make([]byte, hash.Size())
	if _, err := rand.Read(seed); err != nil {
		return nil, nil, err
	}
	encrypted, err = rsa.EncryptOAEP(hash.New(), rand.Reader, pub, seed, []byte(labelIdentity+"\x00"))
	return seed, encrypted, err
}

// eccSeed agrees on a seed by an ephemeral key (part 1, C.6.4).
func eccSeed(hash crypto.Hash, pub *ecdsa.PublicKey) (seed, encrypted []byte, err error) {
	peer, err := pub.ECDH()
	if err != nil {
		return nil, nil, err
	}
	ephemeral, err := peer.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	z, err := ephemeral.ECDH(peer)
	if err != nil {
		return nil, nil, err
	}
	x, y := coordinates(ephemeral.PublicKey().Bytes())
	peerX, _ := coordinates(peer.Bytes())
	seed = tpm2.KDFe(hash, z, labelIdentity, x, peerX, hash.Size()*8)
	return seed, appendSized(appendSized(nil, x), y), nil
}

// coordinates splits an uncompressed point (SEC 1, 2.3.3).
func coordinates(point []byte) (x, y []byte) {
	size := (len(point) - 1) / 2
	return point[1 : 1+size], point[1+size:]
}

// appendSized appends b as a TPM2B structure: behind its size in two bytes.
func appendSized(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}
