// Package tpm is the agent's use of a TPM 2.0. It finds or makes the endorsement key
// (EK) of the TCG's template, reads its certificate, and makes an attestation key (AK).
// It also activates the credential with which a server verifies that both keys are in
// the same TPM, has the AK quote PCRs, reads the firmware's event log, and proves a DevID.
// Lastly, it makes the key of the agent's SVID, signs with it, and has the AK certify it.
//
// The package writes nothing to the TPM's NV memory, unless MakePersistent is called. It needs
// owner authorization only for that and for a DevID whose key's parent is not in the TPM.
// The keys that it makes are in the TPM only while commands need them. If the EK is
// persistent already, that key is used.
//
// In comments, "part 1" to "part 4" mean the parts of the TPM 2.0 library specification, and
// "the profile" means the TCG EK Credential Profile for TPM Family 2.0.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Config says which TPM to use, and how.
type Config struct {
	// Device is the path of a TPM device, or "unix:" and the path of the
	// socket of a software TPM. If it is empty, the machine's own TPM is used:
	// /dev/tpmrm0 if it exists, else /dev/tpm0.
	Device string
	// EK is the type of the endorsement key. Empty means RSA 2048, or P-256 if
	// the TPM has no RSA. It does not depend on the certificates in the TPM.
	EK attestor.KeyType
	// AK is the type of the attestation key. Empty means P-256, or RSA 2048 if
	// the TPM cannot sign with P-256. A hardware TPM makes a P-256 key at once;
	// an RSA key takes it seconds.
	AK attestor.KeyType
	// EndorsementPassword authorizes the use of the endorsement hierarchy.
	EndorsementPassword string
	// OwnerPassword authorizes reading those NV indices that only the owner may
	// read, and making the parent of a DevID's key.
	OwnerPassword string
	// EventLogPath is the path of the firmware's event log. If it is empty, it is the
	// kernel's for Device: /sys/kernel/security/tpm0/binary_bios_measurements for the
	// machine's own TPM and for /dev/tpm0, and none for a socket.
	EventLogPath string
	// DevID is the machine's DevID, or nil if it has none.
	DevID *DevIDConfig
	// SVIDKeyDirectory is the directory of the KeyManager that keeps the agent's SVID key in
	// this TPM, or empty if the key is elsewhere.
	SVIDKeyDirectory string
}

// auto is the word in a configuration for an empty Config.EK or Config.AK.
const auto = "auto"

// ekTypes and akTypes are the types of EK and AK that an attestation can use, akTypes in
// order of preference.
var (
	ekTypes = [...]attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384, attestor.RSA3072}
	akTypes = [...]attestor.KeyType{attestor.P256, attestor.RSA2048}
)

// ParseEK returns the value of Config.EK for the word s: "auto", "rsa2048", "p256",
// "p384" or "rsa3072". An empty s means "auto".
func ParseEK(s string) (attestor.KeyType, error) {
	return parseKeyType(s, "endorsement key", ekTypes[:])
}

// ParseAK returns the value of Config.AK for the word s: "auto", "p256" or "rsa2048".
// An empty s means "auto".
func ParseAK(s string) (attestor.KeyType, error) {
	return parseKeyType(s, "attestation key", akTypes[:])
}

func parseKeyType(s, of string, types []attestor.KeyType) (attestor.KeyType, error) {
	if s == "" || s == auto {
		return "", nil
	}
	if t := attestor.KeyType(s); slices.Contains(types, t) {
		return t, nil
	}
	words := []string{auto}
	for _, t := range types {
		words = append(words, string(t))
	}
	return "", fmt.Errorf("%q is not a type of %s: use one of %s", s, of, strings.Join(words, ", "))
}

// A TPM makes attestations. It keeps no connection to the TPM. It remembers what does
// not change between attestations, such as the certificates in the TPM. It is not safe
// for concurrent use.
type TPM struct {
	config Config
	open   func(ctx context.Context, device string) (channel, error)
	known  *inventory // nil before the first attestation
	devID  devIDState
}

// A Problem is a mistake in a configuration.
type Problem struct {
	// Key is the key of the plugin's configuration, or empty if the mistake is in the
	// whole.
	Key string
	// Message says what is wrong and what to write instead. It never shows a password.
	Message string
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.Message
	}
	return p.Key + ": " + p.Message
}

// Problems returns all mistakes in the configuration: a device in an unknown form, an
// unknown type of EK or AK, a password longer than a TPM accepts, a path that is not absolute, a
// DevID without a key. It does not look whether the device or a file exists.
func (c Config) Problems() []Problem {
	var problems []Problem
	check := func(key string, err error) {
		if err != nil {
			problems = append(problems, Problem{key, err.Error()})
		}
	}
	check("device", checkDevice(c.Device))
	_, err := ParseEK(string(c.EK))
	check("ek", err)
	_, err = ParseAK(string(c.AK))
	check("ak", err)
	check("endorsement_password", checkPassword(c.EndorsementPassword))
	check("event_log_path", checkPath(c.EventLogPath))
	check("owner_password", checkPassword(c.OwnerPassword))
	check("svid_key_directory", checkPath(c.SVIDKeyDirectory))
	if c.DevID != nil {
		c.DevID.problems(check)
	}
	return problems
}

func checkPassword(password string) error {
	if n := len(password); n > maxAuthSize {
		return fmt.Errorf("a TPM takes at most %d bytes, not %d", maxAuthSize, n)
	}
	return nil
}

// New returns the TPM that config describes. It does not open the device.
func New(config Config) (*TPM, error) {
	var errs []string
	for _, p := range config.Problems() {
		errs = append(errs, p.String())
	}
	if len(errs) > 0 {
		return nil, errors.New(strings.Join(errs, "; "))
	}
	return &TPM{config: config, open: openChannel}, nil
}

// maxAuthSize is the size of the largest digest, which is the limit of an
// authorization value (part 2, TPM2B_AUTH).
const maxAuthSize = 64

// connect opens the TPM for one call, whose context is ctx. The caller closes the connection. A KeyManager "tpm" is
// another process, which has the device open only while it signs or makes a key. So if one is configured, connect
// waits up to about ten seconds for a device that is in use.
func (t *TPM) connect(ctx context.Context) (*conn, error) {
	pause := firstPause
	for attempt := 0; ; attempt++ {
		ch, err := t.open(ctx, t.config.Device)
		if err == nil {
			return newConn(ctx, ch), nil
		}
		if t.config.SVIDKeyDirectory == "" || attempt == maxResends || !errors.Is(err, syscall.EBUSY) {
			return nil, err
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
		pause *= 2
	}
}
