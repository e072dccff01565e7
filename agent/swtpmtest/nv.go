package swtpmtest

import (
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// WriteNV defines an NV index and writes content to it (TPM 2.0 Library, part 3, 31.3 and
// 31.7). Everybody can read the index,
// as everybody can read the indices of EK certificates.
func (t *TPM) WriteNV(index uint32, content []byte) {
	t.tb.Helper()
	c, err := linuxudstpm.Open(t.Socket)
	if err != nil {
		t.tb.Fatal(err)
	}
	defer c.Close()
	if err := writeNV(c, tpm2.TPMHandle(index), content); err != nil {
		t.tb.Fatal(err)
	}
}

func writeNV(c transport.TPM, index tpm2.TPMHandle, content []byte) error {
	const atOnce = 512 // bytes, which every TPM accepts
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHOwner,
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(content)),
			Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
		}),
	}.Execute(c)
	for offset := 0; offset < len(content) && err == nil; offset += atOnce {
		var public *tpm2.NVReadPublicResponse
		if public, err = (tpm2.NVReadPublic{NVIndex: index}).Execute(c); err != nil {
			break
		}
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: content[offset:min(offset+atOnce, len(content))]},
			Offset:     uint16(offset),
		}.Execute(c)
	}
	return err
}
