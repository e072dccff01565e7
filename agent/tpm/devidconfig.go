package tpm

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// DevIDConfig says where the machine's DevID is: its certificate, and its key, which is given in one of three ways.
type DevIDConfig struct {
	// CertPath is the path of the certificate in PEM, followed by those above it.
	CertPath string
	// PrivPath and PubPath are the paths of the key that the TPM has wrapped: TPM2B_PRIVATE and
	// TPM2B_PUBLIC (TPM 2.0 library specification, part 2, 12.3.7 and 12.2.5), with their sizes
	// or without.
	PrivPath, PubPath string
	// Handle is the handle of a persistent key, such as "0x81000010".
	Handle string
	// IDevID is the TCG's template of a key that the manufacturer has certified: "H-1", "H-2"
	// or "H-3".
	IDevID string
	// Password authorizes the use of the key.
	Password string
}

// problems calls check for each key of the block devid, with what is wrong with its value or nil.
func (d *DevIDConfig) problems(check func(key string, err error)) {
	in := func(key string, err error) { check("devid: "+key, err) }
	in("cert_path", d.checkCertPath())
	in("handle", d.checkHandle())
	in("idevid", d.checkIDevID())
	in("password", d.checkPassword())
	in("priv_path", checkBeside("pub_path", d.PubPath, d.PrivPath))
	in("pub_path", checkBeside("priv_path", d.PrivPath, d.PubPath))
	check("devid", d.checkKey())
}

func (d *DevIDConfig) checkCertPath() error {
	if d.CertPath == "" {
		return errors.New("it is missing: name the file with the DevID's certificate")
	}
	return checkPath(d.CertPath)
}

func (d *DevIDConfig) checkHandle() error {
	_, err := d.handle()
	return err
}

// handle returns the handle of a persistent key, or zero if none is named.
func (d *DevIDConfig) handle() (tpm2.TPMHandle, error) {
	if d.Handle == "" {
		return 0, nil
	}
	digits, ok := strings.CutPrefix(d.Handle, "0x")
	n, err := strconv.ParseUint(digits, 16, 32)
	if !ok || err != nil || n>>24 != uint64(tpm2.TPMHTPersistent) {
		return 0, fmt.Errorf(`%q is not the handle of a persistent key: write it as "0x81000010"`, d.Handle)
	}
	return tpm2.TPMHandle(n), nil
}

func (d *DevIDConfig) checkIDevID() error {
	if d.IDevID != "" && !slices.Contains(idevidNames, d.IDevID) {
		return fmt.Errorf("%q is not a template for IDevIDs: use one of %s", d.IDevID, strings.Join(idevidNames, ", "))
	}
	return nil
}

func (d *DevIDConfig) checkPassword() error {
	if d.Password != "" && d.IDevID != "" {
		return errors.New("an IDevID that is made again has none: remove it, or set endorsement_password")
	}
	return checkPassword(d.Password)
}

// checkKey checks that the key is named in exactly one way.
func (d *DevIDConfig) checkKey() error {
	n := 0
	for _, set := range []bool{d.PrivPath != "" || d.PubPath != "", d.Handle != "", d.IDevID != ""} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("it names %d keys: set priv_path and pub_path, or handle, or idevid", n)
	}
	return nil
}

// checkBeside checks a path that must be set if another is.
func checkBeside(other, theOther, path string) error {
	if path == "" && theOther != "" {
		return fmt.Errorf("it is missing beside %s", other)
	}
	return checkPath(path)
}

// checkPath checks the form of a path, not whether there is a file.
func checkPath(path string) error {
	if path != "" && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	return nil
}
