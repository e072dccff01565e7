package tpm

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// maxNVSize is the size of the largest NV index that is read, in bytes. EK
// certificates have 1000 to 2000 bytes.
const maxNVSize = 8 << 10

// errUnwritten means that an NV index is defined but has not been written.
var errUnwritten = errors.New("nothing was written to it")

// readNV reads the whole content of an NV index, bufferSize bytes at a time.
func (t *TPM) readNV(c *conn, index tpm2.TPMHandle, bufferSize uint16) ([]byte, error) {
	pub, err := execute(c, tpm2.NVReadPublic{NVIndex: index})
	if err != nil {
		return nil, explain("read its public area", err)
	}
	info, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("read its public area: %w", err)
	}
	switch {
	case !info.Attributes.Written:
		return nil, errUnwritten
	case info.Attributes.ReadLocked:
		return nil, errors.New("it is read-locked until the next restart")
	case info.DataSize > maxNVSize:
		return nil, fmt.Errorf("it is %d bytes long: at most %d are read", info.DataSize, maxNVSize)
	}
	err = errors.New("it can be read neither with its own nor with the owner's authorization")
	for _, auth := range t.nvAuths(index, pub.NVName, info.Attributes) {
		var content []byte
		content, err = readNVWith(c, auth, tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			int(info.DataSize), int(bufferSize))
		if err == nil {
			return content, nil
		}
		if !isCode(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
			break
		}
	}
	return nil, explain("read it", err,
		remedy{tpm2.TPMRCBadAuth, ErrSetup, wrongOwner},
		remedy{tpm2.TPMRCAuthFail, ErrSetup, "its password is not empty, contrary to the profile"})
}

// nvAuths returns the authorizations with which an index may be read, in the order in
// which to try them. EK certificates are readable with the index's own password, which
// is empty (profile, 2.2.1). If a wrong password would count towards the TPM's lockout,
// the index's own password comes last.
func (t *TPM) nvAuths(index tpm2.TPMHandle, name tpm2.TPM2BName, attr tpm2.TPMANV) []tpm2.AuthHandle {
	own := tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)}
	var auths []tpm2.AuthHandle
	if attr.AuthRead && attr.NoDA {
		auths = append(auths, own)
	}
	if attr.OwnerRead {
		auths = append(auths, t.owner())
	}
	if attr.AuthRead && !attr.NoDA {
		auths = append(auths, own)
	}
	return auths
}

func readNVWith(c *conn, auth tpm2.AuthHandle, index tpm2.NamedHandle, size, bufferSize int) ([]byte, error) {
	content := make([]byte, 0, size)
	for len(content) < size {
		want := min(size-len(content), bufferSize)
		rsp, err := execute(c, tpm2.NVRead{
			AuthHandle: auth,
			NVIndex:    index,
			Size:       uint16(want),
			Offset:     uint16(len(content)),
		})
		if err != nil {
			return nil, err
		}
		if len(rsp.Data.Buffer) != want {
			return nil, fmt.Errorf("got %d bytes instead of %d", len(rsp.Data.Buffer), want)
		}
		content = append(content, rsp.Data.Buffer...)
	}
	return slices.Clip(content), nil
}
