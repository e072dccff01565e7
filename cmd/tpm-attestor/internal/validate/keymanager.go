package validate

import (
	"cmp"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// keyManagerPath comes before the keys of KeyManager "tpm" in findings.
const keyManagerPath = `KeyManager "tpm": `

// checkKeyManager checks the KeyManager "tpm" in a configuration of SPIRE Agent, and whether it and the
// node attestor use the same keys.
func (v *validation) checkKeyManager(name string, file *config.File) {
	data, ok, err := file.KeyManagerData()
	if err != nil {
		v.result.refused(err)
		return
	}
	var keys *agent.KeyManagerConfig
	if ok {
		if keys = v.checkKeys(name, keyManagerPath, data); keys == nil {
			return
		}
	}
	if v.attestor != nil {
		v.fits(keys)
	}
}

// checkKeys checks the plugin_data of a KeyManager "tpm". It returns nil if the plugin_data is not valid.
func (v *validation) checkKeys(file, path string, data config.Data) *agent.KeyManagerConfig {
	c, problems := agent.ParseKeyManagerConfig(data.Text)
	v.result.problemsIn(data, path, problems)
	if len(problems) > 0 {
		return nil
	}
	if c.EndorsementPassword != "" {
		v.secretInside(cmp.Or(data.File, file))
	}
	if v.user == nil {
		return &c
	}
	v.mayUseTPM(path+"device", c.Device)
	// If the directory does not exist, the plugin creates it in its parent.
	if _, err := os.Stat(c.Directory); err == nil {
		v.may(path+"directory", c.Directory, access.Read|access.Write|access.Search)
	} else {
		above := filepath.Dir(c.Directory)
		v.exists(path+"directory", above)
		v.may(path+"directory", above, access.Write|access.Search)
	}
	return &c
}

// fits checks that the node attestor proves the keys of KeyManager "tpm". keys is nil if there is no such
// KeyManager.
func (v *validation) fits(keys *agent.KeyManagerConfig) {
	r, a := v.result, v.attestor
	const at = "svid_key_directory"
	wrong := func(key, message string) {
		r.problemsIn(v.attestorData, "", []tpm.Problem{{Key: key, Message: message}})
	}
	switch {
	case keys == nil && a.SVIDKeyDirectory != "":
		wrong(at, `there is no KeyManager "tpm" that is enabled, whose directory it has to be: configure it in place `+
			"of the present KeyManager, or remove svid_key_directory")
	case keys == nil:
	case a.SVIDKeyDirectory == "":
		r.Findings.Warn("", "set svid_key_directory = "+strconv.Quote(keys.Directory)+` in NodeAttestor "tpm"`,
			`KeyManager "tpm" keeps the agent's key in the TPM, and the node attestor does not prove it to servers`)
	case filepath.Clean(a.SVIDKeyDirectory) != filepath.Clean(keys.Directory):
		wrong(at, `it is not the directory of KeyManager "tpm": write svid_key_directory = `+
			strconv.Quote(keys.Directory))
	case a.Device != keys.Device:
		wrong("device", `it is not the device of KeyManager "tpm", and a key is in one TPM: name the same in both`)
	case a.EndorsementPassword != keys.EndorsementPassword:
		wrong("endorsement_password", `it is not that of KeyManager "tpm": set the same in both`)
	}
}
