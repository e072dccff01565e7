package swtpmtest

import (
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Extend extends a PCR as firmware does, with a digest for each bank by its name: "sha1", "sha256",
// "sha384" or "sha512". Banks that the TPM does not have are ignored.
func (t *TPM) Extend(pcr int, digests map[string][]byte) {
	t.tb.Helper()
	c, err := linuxudstpm.Open(t.Socket)
	if err != nil {
		t.tb.Fatal(err)
	}
	defer c.Close()
	algorithms := map[string]tpm2.TPMAlgID{
		"sha1": tpm2.TPMAlgSHA1, "sha256": tpm2.TPMAlgSHA256, "sha384": tpm2.TPMAlgSHA384, "sha512": tpm2.TPMAlgSHA512,
	}
	var all []tpm2.TPMTHA
	for _, bank := range slices.Sorted(maps.Keys(digests)) {
		all = append(all, tpm2.TPMTHA{HashAlg: algorithms[bank], Digest: digests[bank]})
	}
	handle := tpm2.TPMHandle(pcr)
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: handle, Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: all},
	}.Execute(c)
	if err != nil {
		t.tb.Fatalf("extend PCR %d: %v", pcr, err)
	}
}
