package attestor_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// A template that differs by one bit makes another key, which is in nobody's list. The two
// low-range templates are those of go-tpm-tools and of go-tpm, byte for byte.
func TestTemplatesOfTheLowRange(t *testing.T) {
	t.Parallel()
	rsa, err := client.DefaultEKTemplateRSA().Encode()
	if err != nil {
		t.Fatal(err)
	}
	ecc, err := client.DefaultEKTemplateECC().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[attestor.KeyType][][]byte{
		attestor.RSA2048: {rsa, tpm2.Marshal(&tpm2.RSAEKTemplate)},
		attestor.P256:    {ecc, tpm2.Marshal(&tpm2.ECCEKTemplate)},
	} {
		tmpl, err := attestor.TemplateFor(kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range want {
			if got := tpm2.Marshal(&tmpl.Public); !bytes.Equal(got, b) {
				t.Errorf("%s: %x, want %x", tmpl.Name, got, b)
			}
		}
	}
}

// The templates are those of the profile, with the NV indexes of their certificates. A caller who
// changes a template changes only a copy.
func TestTemplates(t *testing.T) {
	t.Parallel()
	want := []struct {
		name  string
		kind  attestor.KeyType
		index uint32
		size  int // of TPMT_PUBLIC
	}{
		{"L-1", attestor.RSA2048, 0x01C00002, 314},
		{"L-2", attestor.P256, 0x01C0000A, 122},
		{"H-1", attestor.RSA2048, 0x01C00012, 58},
		{"H-2", attestor.P256, 0x01C00014, 58},
		{"H-3", attestor.P384, 0x01C00016, 74},
		{"H-4", attestor.P521, 0x01C00018, 90},
		{"H-6", attestor.RSA3072, 0x01C0001C, 74},
		{"H-7", attestor.RSA4096, 0x01C0001E, 74},
	}
	got := attestor.EKTemplates()
	if len(got) != len(want) {
		t.Fatalf("%d templates, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		size := len(tpm2.Marshal(&g.Public))
		if g.Name != w.name || g.KeyType != w.kind || g.CertificateIndex != w.index || size != w.size {
			t.Errorf("%s %s %#x of %d bytes, want %s %s %#x of %d", g.Name, g.KeyType, g.CertificateIndex,
				size, w.name, w.kind, w.index, w.size)
		}
		g.Public.AuthPolicy.Buffer[0] ^= 1
	}
	if attestor.EKTemplates()[0].Public.AuthPolicy.Buffer[0] != 0x83 {
		t.Error("a caller changed the table")
	}
	if _, err := attestor.TemplateFor("dsa"); err == nil {
		t.Error("a template for DSA")
	}
}

// The digests of the policies are computed from what they stand for.
func TestTemplatePolicies(t *testing.T) {
	t.Parallel()
	for _, tmpl := range attestor.EKTemplates() {
		hash, err := tmpl.Public.NameAlg.Hash()
		if err != nil {
			t.Fatal(err)
		}
		want := policyA(hash)
		if tmpl.Public.ObjectAttributes.UserWithAuth {
			want = policyB(t, tmpl.Public.NameAlg, hash)
		}
		if got := tmpl.Public.AuthPolicy.Buffer; !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", tmpl.Name, got, want)
		}
	}
}

func sum(hash crypto.Hash, parts ...[]byte) []byte {
	h := hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func command(cc tpm2.TPMCC) []byte { return binary.BigEndian.AppendUint32(nil, uint32(cc)) }

// policyA is TPM2_PolicySecret(TPM_RH_ENDORSEMENT) with no policyRef (TPM 2.0
// library specification, part 3, 23.4).
func policyA(hash crypto.Hash) []byte {
	endorsement := tpm2.HandleName(tpm2.TPMRHEndorsement).Buffer
	extended := sum(hash, make([]byte, hash.Size()), command(tpm2.TPMCCPolicySecret), endorsement)
	return sum(hash, extended)
}

// policyB is TPM2_PolicyOR of policyA and of TPM2_PolicyAuthorizeNV for the
// profile's index I-1, I-2 or I-3 (EK Credential Profile 2.5, B.6; part 3, 23.6
// and 23.22).
func policyB(t *testing.T, alg tpm2.TPMAlgID, hash crypto.Hash) []byte {
	t.Helper()
	index := map[tpm2.TPMAlgID]tpm2.TPMHandle{
		tpm2.TPMAlgSHA256: 0x01C07F01, tpm2.TPMAlgSHA384: 0x01C07F02, tpm2.TPMAlgSHA512: 0x01C07F03,
	}[alg]
	a := policyA(hash)
	name, err := tpm2.NVName(&tpm2.TPMSNVPublic{
		NVIndex: index,
		NameAlg: alg,
		Attributes: tpm2.TPMANV{
			PolicyWrite: true, WriteAll: true, PPRead: true, OwnerRead: true, AuthRead: true,
			PolicyRead: true, NoDA: true, Written: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: a},
		DataSize:   uint16(2 + hash.Size()),
	})
	if err != nil {
		t.Fatal(err)
	}
	zero := make([]byte, hash.Size())
	c := sum(hash, zero, command(tpm2.TPMCCPolicyAuthorizeNV), name.Buffer)
	return sum(hash, zero, command(tpm2.TPMCCPolicyOR), a, c)
}
