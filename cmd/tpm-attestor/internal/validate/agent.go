package validate

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// checkAgent checks the plugin_data of the agent's node attestor. file is the path of the configuration. If err is not
// nil, it says why there is no plugin_data.
func (v *validation) checkAgent(file string, data config.Data, err error) {
	r := v.result
	r.Side = sideAgent
	if err != nil {
		r.refused(err)
		return
	}
	c, problems := agent.ParseConfig(data.Text)
	r.problemsIn(data, "", problems)
	if len(problems) > 0 {
		return
	}
	v.attestor, v.attestorData = &c, data
	if c.EndorsementPassword != "" || c.OwnerPassword != "" || c.DevID != nil && c.DevID.Password != "" {
		v.secretInside(cmp.Or(data.File, file))
	}
	if v.user == nil {
		return
	}
	v.mayUseTPM("device", c.Device)
	if c.SVIDKeyDirectory != "" {
		v.may("svid_key_directory", c.SVIDKeyDirectory, access.Read|access.Search)
	}
	v.readable("event_log_path", c.EventLogPath)
	if d := c.DevID; d != nil {
		v.readable("devid: cert_path", d.CertPath)
		v.readable("devid: priv_path", d.PrivPath)
		v.readable("devid: pub_path", d.PubPath)
	}
}

// mayUseTPM adds a finding if a TPM's device does not exist, or if the user may not use it.
func (v *validation) mayUseTPM(at, device string) {
	if device == "" {
		return
	}
	path, _ := strings.CutPrefix(device, "unix:")
	v.exists(at, path)
	v.may(at, path, access.Read|access.Write)
}

// readable adds a finding if a file does not exist, or if the user may not read it.
func (v *validation) readable(at, path string) {
	if path != "" {
		v.exists(at, path)
		v.may(at, path, access.Read)
	}
}

// secretInside warns if every user may read a configuration file that has a password in it.
func (v *validation) secretInside(file string) {
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0 {
		v.result.Findings.Warn("", "chmod o= "+file,
			"%s has a password of the TPM, and every user on this machine may read it", file)
	}
}

// exists adds a finding if a path does not exist. It is called only with --user: the user shows that the
// configuration is for this machine.
func (v *validation) exists(at, path string) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		v.result.Findings = append(v.result.Findings, finding.Finding{
			Severity: finding.Error, At: at, Message: path + " does not exist",
			Action: "create or start it, or correct the path",
		})
	}
}
