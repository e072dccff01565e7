package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// srkHandle is the handle of the persistent storage root key (SRK), if the TPM has one (TCG TPM v2.0 Provisioning
// Guidance, 7.8.1).
const srkHandle tpm2.TPMHandle = 0x81000001

// srkTemplates returns the templates of storage root keys, H-1 for RSA and H-2 for ECC (profile,
// B.5.1). The template for the type of the DevID's own key comes first, since SPIRE's tpm_devid
// wraps keys by it.
func srkTemplates(keyType tpm2.TPMAlgID) []tpm2.TPMTPublic {
	rsa, ecc := tpm2.RSASRKTemplate, tpm2.ECCSRKTemplate
	rsa.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	ecc.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	if keyType == tpm2.TPMAlgECC {
		return []tpm2.TPMTPublic{ecc, rsa}
	}
	return []tpm2.TPMTPublic{rsa, ecc}
}

// loadWrapped loads the DevID's key from its files, under the parent that wrapped it: the persistent SRK, or an SRK
// that the TPM makes again. It may try a wrong parent: the TPM then refuses the key, and does not count that as a
// wrong password.
func (t *TPM) loadWrapped(c *conn, d *devID) (*key, error) {
	if made := t.devID.made; made != nil && bytes.Equal(made.public, d.public) {
		if k, err := t.load(c, *made); err == nil {
			return k, nil
		}
		t.devID.made = nil
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](d.public)
	if err != nil {
		return nil, err
	}
	templates := srkTemplates(area.Type)
	srk, err := findSRK(c, templates)
	if err != nil {
		return nil, err
	}
	if srk != nil {
		if k, err := t.loadUnder(c, srk, d); !isWrongParent(err) {
			return k, explain("load the DevID's key under the persistent SRK", err)
		}
	}
	for _, template := range templates {
		k, err := t.loadUnderNew(c, template, d)
		if !isWrongParent(err) && !isUnsupported(err) {
			return k, err
		}
	}
	return nil, setup(
		fmt.Errorf("load the DevID's key %s: no parent in this TPM has wrapped it", d.config.PrivPath),
		"the key was made in another TPM, or the TPM was cleared since, or the key is not below the SRK "+
			"(TCG template H-1 or H-2): provision the DevID again, or make the key persistent and set handle")
}

// findSRK returns the persistent SRK, or nil if there is none of the form of a template.
func findSRK(c *conn, templates []tpm2.TPMTPublic) (*key, error) {
	rsp, err := readPersistent(c, srkHandle)
	if rsp == nil {
		return nil, err
	}
	for _, template := range templates {
		if fromTemplate(&rsp.OutPublic, template) {
			k := persistentKey(srkHandle, rsp)
			return &k, nil
		}
	}
	return nil, nil //nolint:nilnil // documented
}

// isWrongParent reports whether a TPM has refused a key because another parent has wrapped it, or
// has not tried because the parent has a password. An SRK is exempt from the lockout (noDA).
func isWrongParent(err error) bool {
	return isCode(err, tpm2.TPMRCIntegrity, tpm2.TPMRCBadAuth) && !errors.Is(err, ErrSetup)
}

// loadUnder runs TPM2_Load.
func (t *TPM) loadUnder(c *conn, parent *key, d *devID) (*key, error) {
	rsp, err := withRoom(t, c, func() (*tpm2.LoadResponse, error) {
		return execute(c, tpm2.Load{
			ParentHandle: parent.authorized(tpm2.PasswordAuth(nil)),
			InPrivate:    tpm2.TPM2BPrivate{Buffer: d.private},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](d.public),
		})
	})
	if err != nil {
		return nil, err
	}
	c.loaded = append(c.loaded, rsp.ObjectHandle)
	return &key{handle: rsp.ObjectHandle, name: rsp.Name, public: d.public}, nil
}

// loadUnderNew makes an SRK and loads the key under it. The SRK does not stay in the TPM, and the
// key's context is saved, so that the SRK need not be made again.
func (t *TPM) loadUnderNew(c *conn, template tpm2.TPMTPublic, d *devID) (*key, error) {
	srk, err := t.createSRK(c, template)
	if err != nil {
		return nil, err
	}
	defer srk.flush(c)
	k, err := t.loadUnder(c, srk, d)
	if err != nil {
		if isWrongParent(err) {
			return nil, err
		}
		return nil, explain("load the DevID's key", err)
	}
	saved, err := execute(c, tpm2.ContextSave{SaveHandle: k.handle})
	if err != nil {
		k.flush(c)
		return nil, explain("save the context of the DevID's key", err)
	}
	made := *k
	made.context = &saved.Context
	t.devID.made = &made
	return k, nil
}

// createSRK makes the SRK of a template. The caller flushes it.
func (t *TPM) createSRK(c *conn, template tpm2.TPMTPublic) (*key, error) {
	rsp, err := t.createPrimaryOf(c, t.owner(), template)
	if err != nil {
		return nil, explain("make the parent of the DevID's key", err,
			remedy{tpm2.TPMRCBadAuth, ErrSetup, wrongOwner},
			remedy{tpm2.TPMRCAuthFail, ErrSetup, wrongOwner},
			remedy{tpm2.TPMRCHierarchy, ErrSetup, "the owner hierarchy is disabled: enable it in the firmware's setup"})
	}
	t.devID.know(rsp.Name)
	return &key{handle: rsp.ObjectHandle, name: rsp.Name}, nil
}
