package tpm

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The sizes of the largest files of a DevID that are read, in bytes. A chain that a server accepts
// has 44 KiB, and a third more as PEM.
const (
	maxDevIDChainFile = 64 << 10
	maxDevIDKeyFile   = 4 << 10
)

// devID is the machine's DevID in one attestation.
type devID struct {
	config *DevIDConfig
	chain  [][]byte // DER
	leaf   crypto.PublicKey

	public  []byte // TPMT_PUBLIC of its key
	private []byte // TPM2B_PRIVATE without its size, if the key comes from files
	key     key    // otherwise
	scheme  attestor.DevIDKey
	policy  bool // certifying it needs the policy of IDevIDs
}

// devIDState is what is remembered of the DevID between attestations.
type devIDState struct {
	// refused is the public area of a key whose password was wrong. It is not tried again: a TPM counts wrong
	// passwords, and after too many it refuses everybody's.
	refused []byte
	// leaf is the key in the certificate, and parents are the names of the parents that the TPM has made. An agent
	// that is killed may leave these keys in the TPM.
	leaf    crypto.PublicKey
	parents []tpm2.TPM2BName
	learned bool // whether learnParents has looked for parents that are loaded
	// made is the key with its saved context, if the TPM had to make the key or its parent, which takes some TPMs
	// seconds. The context can be loaded until the TPM is reset.
	made *key
}

// know remembers the name of a parent, each only once, so that an attestation that fails again and again does not
// make the list grow.
func (s *devIDState) know(parent tpm2.TPM2BName) {
	if !s.knows(parent) {
		s.parents = append(s.parents, parent)
	}
}

func (s *devIDState) knows(parent tpm2.TPM2BName) bool {
	return slices.ContainsFunc(s.parents, func(n tpm2.TPM2BName) bool { return bytes.Equal(n.Buffer, parent.Buffer) })
}

// owns reports whether a key in the TPM is the DevID's or its parent's. No other program has the TPM open, so if
// this connection has not loaded the key, an agent that was killed has left it.
func (s *devIDState) owns(rsp *tpm2.ReadPublicResponse) bool {
	if s.knows(rsp.Name) {
		return true
	}
	area, err := rsp.OutPublic.Contents()
	if err != nil || s.leaf == nil {
		return false
	}
	pub, err := tpm2.Pub(*area)
	return err == nil && sameKey(s.leaf, pub)
}

// sameKey reports whether two keys are the same.
func sameKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// setup returns an error that lasts until somebody changes the machine or the configuration.
func setup(err error, hint string) error { return &Error{Class: ErrSetup, Err: err, Hint: hint} }

// DevIDFiles is what TPM.ReadDevID has read. It does not change, and is safe for concurrent use.
type DevIDFiles struct {
	devID  devID  // without what the TPM knows of it
	public []byte // TPMT_PUBLIC of the key, if it comes from files
}

// ReadDevID reads the files of the configured DevID. It returns nil if none is configured. It does not
// use the TPM, and is safe for concurrent use. The files may be on a file system that hangs.
func (t *TPM) ReadDevID() (*DevIDFiles, error) {
	config := t.config.DevID
	if config == nil {
		return nil, nil //nolint:nilnil // a machine without a DevID
	}
	f := &DevIDFiles{devID: devID{config: config}}
	text, err := readDevIDFile("certificate", "cert_path", config.CertPath, maxDevIDChainFile)
	if err != nil {
		return nil, err
	}
	if f.devID.chain, err = splitChain(text); err == nil {
		f.devID.leaf, err = attestor.ReadDevIDChain(f.devID.chain)
	}
	if err != nil {
		return nil, setup(fmt.Errorf("read the DevID's certificate %s: %w", config.CertPath, err),
			"the file has to hold the DevID's certificate in PEM, followed by those above it and nothing else")
	}
	if config.PubPath == "" {
		return f, nil
	}
	if f.public, err = f.devID.readKeyFiles(); err != nil {
		return nil, err
	}
	return f, nil
}

// takeDevID returns the DevID in f for one attestation, or nil if f is nil.
func (t *TPM) takeDevID(f *DevIDFiles) (*devID, error) {
	if f == nil {
		return nil, nil //nolint:nilnil // a machine without a DevID
	}
	d := f.devID
	t.devID.leaf = d.leaf
	if d.config.PubPath == "" {
		return &d, nil
	}
	return &d, t.takeDevIDKey(&d, f.public, "the key in "+d.config.PubPath)
}

// readKeyFiles reads the key that the TPM has wrapped, and returns its TPMT_PUBLIC.
func (d *devID) readKeyFiles() ([]byte, error) {
	private, err := readDevIDFile("private area", "priv_path", d.config.PrivPath, maxDevIDKeyFile)
	if err != nil {
		return nil, err
	}
	public, err := readDevIDFile("public area", "pub_path", d.config.PubPath, maxDevIDKeyFile)
	if err != nil {
		return nil, err
	}
	d.private = withoutSize(private)
	return withoutSize(public), nil
}

// readDevIDFile reads a file of the DevID.
func readDevIDFile(what, name, path string, limit int64) ([]byte, error) {
	b, err := readRegular(path, limit+1)
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		err = number // without the path, which this function names itself
	}
	doing := fmt.Sprintf("read the DevID's %s %s", what, path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, setup(fmt.Errorf("%s: %w", doing, err), "allow SPIRE Agent's user to read it")
	case err != nil:
		return nil, setup(fmt.Errorf("%s: %w", doing, err),
			"provision the machine, or correct "+name+" in the block devid, or remove the block")
	case int64(len(b)) > limit:
		return nil, setup(fmt.Errorf("%s: it is longer than %d bytes", doing, limit),
			name+" names another kind of file")
	}
	return b, nil
}

// splitChain returns the certificates in a PEM file. It skips text between the blocks, since some tools write text
// there.
func splitChain(text []byte) ([][]byte, error) {
	var chain [][]byte
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of the type %q", block.Type)
		}
		chain, text = append(chain, block.Bytes), rest
	}
	return chain, nil
}

// withoutSize returns the content of a TPM2B structure from a file that may or may not begin with its size. The two
// forms cannot be confused: a public area begins with its algorithm (1 or 0x23), and a private area with the size
// of a digest; neither is the size of the rest.
func withoutSize(b []byte) []byte {
	if len(b) > 2 && int(binary.BigEndian.Uint16(b)) == len(b)-2 {
		return b[2:]
	}
	return b
}

// takeDevIDKey checks the public area of the DevID's key and keeps it in d. It is an error if servers do not accept
// the key, if the TPM cannot certify it, or if the certificate is for another key. from is the key's name in
// errors.
func (t *TPM) takeDevIDKey(d *devID, public []byte, from string) error {
	const provision = "a DevID needs a signing key that was made in the TPM and cannot leave it, " +
		"and its TPM2B_PUBLIC as the TPM has returned it"
	scheme, err := attestor.ReadDevIDKey(public)
	if err != nil {
		return setup(fmt.Errorf("read the DevID's key: %s: %w", from, err), provision)
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		return fmt.Errorf("read the DevID's key: %s: %w", from, err)
	}
	d.public, d.scheme = public, *scheme
	d.policy = area.ObjectAttributes.AdminWithPolicy
	switch {
	case !area.ObjectAttributes.UserWithAuth:
		return setup(fmt.Errorf("read the DevID's key: %s: it signs only by a policy (userWithAuth is clear)", from),
			"provision a key with userWithAuth set")
	case d.policy && !hasIDevIDPolicy(area):
		return setup(fmt.Errorf("read the DevID's key: %s: it can be certified only by a policy "+
			"that this plugin does not know (adminWithPolicy is set)", from),
			"provision a key with adminWithPolicy clear, or with the TCG's policy of IDevIDs")
	case !sameKey(scheme.Public, d.leaf):
		return setup(fmt.Errorf("the DevID's certificate %s is not for %s", d.config.CertPath, from),
			"the DevID's own certificate has to be the first in its file; if it is, "+
				"use the certificate and the key of the same provisioning")
	case bytes.Equal(t.devID.refused, public):
		return setup(
			errors.New("use the DevID's key: its password was wrong before, and the TPM counts wrong passwords"),
			"correct password in the block devid, and restart the agent")
	}
	return nil
}

// findDevID finds the key of a DevID that is in the TPM or that the TPM makes again. A key from files is loaded
// only after a server has asked for the DevID.
func (t *TPM) findDevID(c *conn, d *devID) error {
	switch {
	case d == nil:
		return nil
	case d.config.Handle != "":
		return t.readDevIDHandle(c, d)
	case d.config.IDevID != "":
		return t.createIDevID(c, d)
	}
	return nil
}

func (t *TPM) readDevIDHandle(c *conn, d *devID) error {
	handle, err := d.config.handle()
	if err != nil {
		return err
	}
	rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
	if err != nil {
		return explain("read the DevID's key "+d.config.Handle, err,
			remedy{tpm2.TPMRCHandle, ErrSetup, "make the key persistent there (tpm2_evictcontrol), or correct handle"})
	}
	d.key = persistentKey(handle, rsp)
	return t.takeDevIDKey(d, d.key.public, "the key at "+d.config.Handle)
}

// createIDevID makes the IDevID again. The TPM derives it from its endorsement seed, so it is the
// key that the manufacturer has certified, unless the TPM was cleared in a way that changes that
// seed. The key does not stay in the TPM.
func (t *TPM) createIDevID(c *conn, d *devID) error {
	from := "the IDevID that the TPM makes from the template " + d.config.IDevID
	if made := t.devID.made; made != nil {
		if k, err := attestor.ReadDevIDKey(made.public); err == nil && sameKey(k.Public, d.leaf) {
			d.key = *made
			return t.takeDevIDKey(d, d.key.public, from)
		}
	}
	templates, err := idevidTemplates(d.config.IDevID)
	if err != nil {
		return err
	}
	for _, template := range templates {
		rsp, err := t.createPrimary(c, template)
		if err != nil {
			return explain("make the IDevID again", err, endorsementRemedies[:]...)
		}
		d.key = key{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()}
		made, err := attestor.ReadDevIDKey(d.key.public)
		if err == nil && sameKey(made.Public, d.leaf) {
			if err := d.key.unload(c); err != nil {
				return explain("save the IDevID's context", err)
			}
			made := d.key
			t.devID.made = &made
			break
		}
		d.key.flush(c)
	}
	return t.takeDevIDKey(d, d.key.public, from)
}

// proveDevID loads the DevID's key, has the AK certify it, and has it sign the server's message. The key does not
// stay in the TPM.
func (a *Attestation) proveDevID(c *conn, ak *key, req *attestor.DevIDRequest) (*attestor.SignedDevID, error) {
	d := a.devID
	if d == nil {
		return nil, errors.New("the server asks for a DevID, and none is configured")
	}
	k, err := a.tpm.loadDevID(c, d)
	if err != nil {
		return nil, err
	}
	defer k.flush(c)
	cert, err := a.tpm.certifyDevID(c, ak, k, d, req.QualifyingData)
	if err != nil {
		return nil, a.tpm.explainDevID(d, "certify the DevID's key", err)
	}
	signature, err := d.sign(c, k, req.Message)
	if err != nil {
		return nil, a.tpm.explainDevID(d, "sign with the DevID's key", err)
	}
	return &attestor.SignedDevID{
		Chain: d.chain, Public: d.public,
		Attest: cert.CertifyInfo.Bytes(), AttestSignature: tpm2.Marshal(cert.Signature), Signature: signature,
	}, nil
}

// loadDevID loads the DevID's key. The caller flushes it.
func (t *TPM) loadDevID(c *conn, d *devID) (*key, error) {
	if d.private != nil {
		return t.loadWrapped(c, d)
	}
	k, err := t.load(c, d.key)
	if err != nil {
		t.devID.made = nil
		return nil, explainLoad("load the IDevID", err)
	}
	return k, nil
}

// certifyDevID runs TPM2_Certify with the loaded keys.
func (t *TPM) certifyDevID(c *conn, ak, k *key, d *devID, data []byte) (*tpm2.CertifyResponse, error) {
	auth := d.password()
	if d.policy {
		area, err := tpm2.Unmarshal[tpm2.TPMTPublic](d.public)
		if err != nil {
			return nil, err
		}
		auth = t.idevidSession(area.NameAlg)
	}
	return withRoom(t, c, func() (*tpm2.CertifyResponse, error) {
		// The command is sent even if ctx ends after a session has begun: nothing else would
		// flush the session.
		defer c.detach()()
		return execute(c, tpm2.Certify{
			ObjectHandle:   k.authorized(auth),
			SignHandle:     ak.authorized(tpm2.PasswordAuth(nil)),
			QualifyingData: tpm2.TPM2BData{Buffer: data},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the AK's
		})
	})
}

func (d *devID) password() tpm2.Session { return tpm2.PasswordAuth([]byte(d.config.Password)) }

// sign has the loaded key sign a message, and returns a TPMT_SIGNATURE. It hashes the message, since the TPM signs
// digests.
func (d *devID) sign(c *conn, k *key, message []byte) ([]byte, error) {
	hash, err := d.scheme.Hash.Hash()
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(message)
	sig, err := d.signDigest(c, k, h.Sum(nil))
	if err != nil {
		return nil, err
	}
	return tpm2.Marshal(sig), nil
}

// signDigest runs TPM2_Sign with the loaded key, over a digest by the hash of its scheme.
func (d *devID) signDigest(c *conn, k *key, digest []byte) (*tpm2.TPMTSignature, error) {
	rsp, err := execute(c, tpm2.Sign{
		KeyHandle:  k.authorized(d.password()),
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   signScheme(d.scheme.Scheme, d.scheme.Hash),
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	})
	if err != nil {
		return nil, err
	}
	return &rsp.Signature, nil
}

func signScheme(scheme, hash tpm2.TPMAlgID) tpm2.TPMTSigScheme {
	return tpm2.TPMTSigScheme{
		Scheme:  scheme,
		Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: hash}),
	}
}

// explainDevID says why the key could not be used. If its password was wrong, it remembers that.
func (t *TPM) explainDevID(d *devID, doing string, err error) error {
	const wrong = "set password in the block devid to the key's password; the TPM counts wrong passwords"
	if isCode(err, tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth) && !errors.Is(err, ErrSetup) {
		t.devID.refused = d.public
	}
	if errors.Is(err, ErrSetup) || errors.Is(err, ErrNotReady) {
		return fmt.Errorf("%s: %w", doing, err) // from the policy session
	}
	return explain(doing, err,
		remedy{tpm2.TPMRCAuthFail, ErrSetup, wrong},
		remedy{tpm2.TPMRCBadAuth, ErrSetup, wrong})
}
