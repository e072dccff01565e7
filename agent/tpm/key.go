package tpm

import (
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// key is a key of the TPM. A key that is not persistent is in the TPM only while
// commands need it. Otherwise an agent that is killed while it waits for the server
// would leave it there, and without a resource manager a TPM has room for three keys.
type key struct {
	handle     tpm2.TPMHandle // if the key is persistent or loaded
	name       tpm2.TPM2BName
	public     []byte // TPMT_PUBLIC
	persistent bool
	// context is the saved context of a key that is not persistent.
	context *tpm2.TPMSContext
}

// unload saves the context of a loaded key. It flushes the key even on an error.
func (k *key) unload(c *conn) error {
	rsp, err := execute(c, tpm2.ContextSave{SaveHandle: k.handle})
	k.flush(c)
	if err != nil {
		return err
	}
	k.context = &rsp.Context
	return nil
}

// load loads k into the TPM, unless k is persistent, and returns the loaded key. The
// caller flushes it.
func (t *TPM) load(c *conn, k key) (*key, error) {
	if k.persistent {
		return &k, nil
	}
	rsp, err := withRoom(t, c, func() (*tpm2.ContextLoadResponse, error) {
		return execute(c, tpm2.ContextLoad{Context: *k.context})
	})
	if err != nil {
		return nil, err
	}
	k.handle = rsp.LoadedHandle
	c.loaded = append(c.loaded, k.handle)
	return &k, nil
}

// flush removes the key from the TPM, unless the key is persistent. It does so even if
// the context of c has ended.
func (k *key) flush(c *conn) {
	if k.persistent || k.handle == 0 {
		return
	}
	flush(c, k.handle)
	k.handle = 0
}

// flush removes a key or a session from the TPM and reports whether that succeeded. It
// does so even if the context of c has ended. If it fails, nothing can be done here; a
// resource manager flushes the handle when the connection closes.
func flush(c *conn, handle tpm2.TPMHandle) bool {
	defer c.detach()()
	c.loaded = slices.DeleteFunc(c.loaded, func(h tpm2.TPMHandle) bool { return h == handle })
	_, err := execute(c, tpm2.FlushContext{FlushHandle: handle})
	return err == nil
}

// authorized returns the key's handle with the session that authorizes its use.
func (k *key) authorized(auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: auth}
}

// createPrimary makes a primary key of the endorsement hierarchy. The caller flushes it.
func (t *TPM) createPrimary(c *conn, template tpm2.TPMTPublic) (*tpm2.CreatePrimaryResponse, error) {
	return t.createPrimaryOf(c, t.endorsement(), template)
}

// createPrimaryOf makes a primary key of a hierarchy. The caller flushes it.
func (t *TPM) createPrimaryOf(c *conn, hierarchy tpm2.AuthHandle, template tpm2.TPMTPublic) (
	*tpm2.CreatePrimaryResponse, error,
) {
	rsp, err := withRoom(t, c, func() (*tpm2.CreatePrimaryResponse, error) {
		return execute(c, tpm2.CreatePrimary{
			PrimaryHandle: hierarchy,
			InPublic:      tpm2.New2B(template),
		})
	})
	if err != nil {
		return nil, err
	}
	c.loaded = append(c.loaded, rsp.ObjectHandle)
	return rsp, nil
}

// ecdsaParms returns the parameters of a key that signs only by ECDSA with a hash.
func ecdsaParms(curve tpm2.TPMECCCurve, hash tpm2.TPMAlgID) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: curve,
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash}),
		},
	})
}

// rsassaParms returns the parameters of a key that signs only by RSASSA-PKCS1-v1_5 with a hash.
func rsassaParms(bits tpm2.TPMKeyBits, hash tpm2.TPMAlgID) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
		KeyBits: bits,
		Scheme: tpm2.TPMTRSAScheme{
			Scheme:  tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash}),
		},
	})
}
