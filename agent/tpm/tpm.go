// Package tpm makes, in a TPM 2.0, what one attestation needs: the endorsement
// key (EK) under the TCG's template, its certificate, and an attestation key
// (AK); and it activates the credential by which a server makes sure that the
// two are in one TPM.
//
// Nothing is written to the TPM's NV memory and no owner authorization is asked
// for. Keys are transient and gone when the attestation is closed; an EK that is
// persistent already is used where it is the right one. Parts 1 to 4 in comments
// are those of the TPM 2.0 library specification; the profile is the TCG EK
// Credential Profile for TPM Family 2.0.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Config says which TPM to use, and how.
type Config struct {
	// Device is the path of a TPM device, or "unix:" and the path of the
	// socket of a software TPM, or empty for the machine's own: /dev/tpmrm0,
	// else /dev/tpm0.
	Device string
	// EK is the type of the endorsement key. Empty is RSA 2048, or P-256 in a
	// TPM without RSA: always the same key, whichever certificates there are.
	EK attestor.KeyType
	// AK is the type of the attestation key. Empty is P-256, which a hardware
	// TPM makes at once, where RSA takes it seconds; RSA 2048 in a TPM
	// without it.
	AK attestor.KeyType
	// EndorsementPassword authorizes the use of the endorsement hierarchy.
	EndorsementPassword string
	// OwnerPassword authorizes reading the NV indices that are readable with
	// the owner's authorization alone.
	OwnerPassword string
}

// auto is the word for an empty Config.EK or Config.AK.
const auto = "auto"

// ekTypes and akTypes are the types of EK and of AK that an attestation can use.
var (
	ekTypes = [...]attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384, attestor.RSA3072}
	akTypes = [...]attestor.KeyType{attestor.P256, attestor.RSA2048}
)

// ParseEK returns the value of Config.EK that s names: "auto", "rsa2048", "p256",
// "p384" or "rsa3072". Nothing is auto.
func ParseEK(s string) (attestor.KeyType, error) {
	return parseKeyType(s, "endorsement key", ekTypes[:])
}

// ParseAK returns the value of Config.AK that s names: "auto", "p256" or
// "rsa2048". Nothing is auto.
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

// A TPM makes attestations. It keeps no connection; it remembers what does not
// change between them: what the TPM can do, and the certificates in it. It is
// used by one goroutine at a time.
type TPM struct {
	config Config
	open   func(ctx context.Context, device string) (channel, error)
	known  *inventory
}

// Problems returns what is wrong with the configuration itself: a device of none
// of the forms above, a type of EK or AK that is not made, a password longer than a
// TPM takes. Whether the device is there is another matter.
func (c Config) Problems() []string {
	var problems []string
	if err := checkDevice(c.Device); err != nil {
		problems = append(problems, "device: "+err.Error())
	}
	if _, err := ParseEK(string(c.EK)); err != nil {
		problems = append(problems, "ek: "+err.Error())
	}
	if _, err := ParseAK(string(c.AK)); err != nil {
		problems = append(problems, "ak: "+err.Error())
	}
	for _, password := range []struct{ key, value string }{
		{"endorsement_password", c.EndorsementPassword},
		{"owner_password", c.OwnerPassword},
	} {
		if n := len(password.value); n > maxAuthSize {
			problems = append(problems,
				fmt.Sprintf("%s: a TPM takes at most %d bytes, not %d", password.key, maxAuthSize, n))
		}
	}
	return problems
}

// New returns the TPM that config describes, without touching it.
func New(config Config) (*TPM, error) {
	if problems := config.Problems(); len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "; "))
	}
	return &TPM{config: config, open: openChannel}, nil
}

// maxAuthSize is the size of the largest digest, which is the limit of an
// authorization value (part 2, TPM2B_AUTH).
const maxAuthSize = 64

// connect opens the TPM. The connection ends with ctx; the caller closes it.
func (t *TPM) connect(ctx context.Context) (*conn, error) {
	ch, err := t.open(ctx, t.config.Device)
	if err != nil {
		return nil, err
	}
	return newConn(ctx, ch), nil
}
