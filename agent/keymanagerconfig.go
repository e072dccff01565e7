package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
)

// KeyManagerConfig is the configuration of a KeyManager.
type KeyManagerConfig struct {
	// Directory is the absolute path of the key directory; see package keydir.
	Directory string
	// Device and EndorsementPassword are passed to tpm.Config, which says what they mean.
	Device, EndorsementPassword string
}

// ParseKeyManagerConfig reads the configuration of a KeyManager, the content of plugin_data, in HCL or
// JSON. If there are problems, it returns all of them and a zero configuration.
func ParseKeyManagerConfig(src string) (KeyManagerConfig, []tpm.Problem) {
	settings, err := parseSettings(src)
	if err != nil {
		return KeyManagerConfig{}, []tpm.Problem{{Message: err.Error()}}
	}
	var c KeyManagerConfig
	r := new(configReader)
	r.readAll("", settings, map[string]field{
		"device":               keep(&c.Device),
		"directory":            keep(&c.Directory),
		"endorsement_password": keep(&c.EndorsementPassword),
	})
	r.problems = append(r.problems, c.problems()...)
	if len(r.problems) > 0 {
		return KeyManagerConfig{}, r.problems
	}
	return c, nil
}

// IsKeyManager reports whether src is the configuration of a KeyManager: whether it can be parsed and has the key
// named directory, which the configuration of a node attestor does not have.
func IsKeyManager(src string) bool {
	settings, err := parseSettings(src)
	return err == nil && slices.ContainsFunc(settings, func(s setting) bool { return s.key == "directory" })
}

func (c *KeyManagerConfig) problems() []tpm.Problem {
	problems := tpm.Config{Device: c.Device, EndorsementPassword: c.EndorsementPassword}.Problems()
	const example = `write directory = "/var/lib/spire/agent/tpm", a directory of the agent's data on this machine`
	switch d := c.Directory; {
	case d == "":
		problems = append(problems, tpm.Problem{Key: "directory", Message: "it is missing: " + example})
	case !filepath.IsAbs(d) || strings.ContainsRune(d, 0):
		problems = append(problems, tpm.Problem{
			Key: "directory", Message: fmt.Sprintf("%q is not an absolute path: %s", d, example),
		})
	}
	return problems
}
