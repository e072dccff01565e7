package validate

import (
	"os"
	"path/filepath"
	"strconv"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// keyManagerPath comes before the keys of KeyManager "tpm" in findings.
const keyManagerPath = `KeyManager "tpm": `

// checkKeyManager checks the KeyManager "tpm" in a configuration of SPIRE Agent, and whether it and the
// node attestor use the same keys.
func (v *validation) checkKeyManager(file, text string) {
	data, ok, err := config.KeyManagerData(text)
	if err != nil {
		v.result.problem("plugins", err.Error())
		return
	}
	var keys *agent.KeyManagerConfig
	if ok {
		if keys = v.checkKeys(file, keyManagerPath, data); keys == nil {
			return
		}
	}
	if v.attestor != nil {
		v.fits(keys)
	}
}

// checkKeys checks the plugin_data of a KeyManager "tpm", and returns it if it is valid.
func (v *validation) checkKeys(file, path, data string) *agent.KeyManagerConfig {
	c, problems := agent.ParseKeyManagerConfig(data)
	for _, p := range problems {
		v.result.problem(path+p.Key, p.Message)
	}
	if len(problems) > 0 {
		return nil
	}
	if c.EndorsementPassword != "" {
		v.secretInside(file)
	}
	if v.user == nil {
		return &c
	}
	v.mayUseTPM(path+"device", c.Device)
	// The plugin makes the directory in the one above it.
	if _, err := os.Stat(c.Directory); err == nil {
		v.may(path+"directory", c.Directory, access.Read|access.Write|access.Search)
	} else {
		above := filepath.Dir(c.Directory)
		v.exists(path+"directory", above)
		v.may(path+"directory", above, access.Write|access.Search)
	}
	return &c
}

// fits checks that the node attestor proves the keys of the key manager. keys is nil if there is no key manager.
func (v *validation) fits(keys *agent.KeyManagerConfig) {
	r, a := v.result, v.attestor
	const at = "svid_key_directory"
	switch {
	case keys == nil && a.SVIDKeyDirectory != "":
		r.problem(at, `there is no KeyManager "tpm", whose directory it has to be: configure it in place of the `+
			"present KeyManager, or remove svid_key_directory")
	case keys == nil:
	case a.SVIDKeyDirectory == "":
		r.Findings.Warn("", "set svid_key_directory = "+strconv.Quote(keys.Directory)+` in NodeAttestor "tpm"`,
			`KeyManager "tpm" keeps the agent's key in the TPM, and the node attestor does not prove it to servers`)
	case filepath.Clean(a.SVIDKeyDirectory) != filepath.Clean(keys.Directory):
		r.problem(at, `it is not the directory of KeyManager "tpm": write svid_key_directory = `+
			strconv.Quote(keys.Directory))
	case a.Device != keys.Device:
		r.problem("device", `it is not the device of KeyManager "tpm", and a key is in one TPM: name the same in both`)
	case a.EndorsementPassword != keys.EndorsementPassword:
		r.problem("endorsement_password", `it is not that of KeyManager "tpm": set the same in both`)
	}
}
