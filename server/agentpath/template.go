// Package agentpath forms the SPIFFE ID of an agent from a template and from what is known
// about its TPM.
//
// A template is text with fields in double braces, which are replaced by their values:
//
//	/tpm/{{ .Issuer }}/{{ .Serial }}
//
// No other part of text/template belongs to the language: no function, no condition, no loop.
// So every field of a template is in every ID that it forms, which lets [Parse] prove that two
// machines never get one ID.
package agentpath

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Default is the template of the incumbent's IDs.
const Default = "/tpm/{{ .PubHash }}"

// The limits of a template and of the IDs that it forms, in bytes. A SPIFFE ID
// has at most 2048 (SPIFFE-ID, 2.3).
const (
	maxTemplate = 1024
	maxID       = 2048
)

// agentPrefix is the path below which SPIRE keeps the IDs of agents.
const agentPrefix = "/spire/agent"

// ErrMissing is wrapped by an error of Template.ID if a field of the template has no value.
var ErrMissing = errors.New("has no value")

// Field is something known about a TPM.
type Field int

// The fields of a template, written {{ .PubHash }} and so on.
const (
	// PubHash is the EK hash: 64 hex digits.
	PubHash Field = iota
	// Name is the machine's name in a list.
	Name
	// CA is the name of the bundle that vouches for the EK certificate or, in a template
	// without Serial, for the DevID certificate.
	CA
	// Issuer is the hash of the key that issued the EK certificate: 64 hex
	// digits.
	Issuer
	// Serial is the EK certificate's serial number in hex.
	Serial
	// DevIDFingerprint is the hash of the DevID certificate: 64 hex digits.
	DevIDFingerprint
	// numFields is how many fields there are.
	numFields
)

// pluginName is one more field, as in the templates of SPIRE's own attestors.
// Its value is always the same.
const (
	pluginName      = "PluginName"
	pluginNameValue = "tpm"
)

// fieldNames are the names of the other fields in templates.
var fieldNames = [numFields]string{"PubHash", "Name", "CA", "Issuer", "Serial", "DevIDFingerprint"}

// String returns the field as it is written in a template, ".Name".
func (f Field) String() string {
	if f < 0 || f >= numFields {
		return "unknown field"
	}
	return "." + fieldNames[f]
}

// Values are the values of the fields. Every field that a template uses must have a value.
type Values [numFields]string

// A Template forms IDs. It is immutable and safe for concurrent use.
type Template struct {
	text  string
	parts []part
	uses  [numFields]bool
}

// part is a field, or the text between two of them.
type part struct {
	text    string // if isField is false
	field   Field
	isField bool
}

// String returns the template as it was written.
func (t *Template) String() string { return t.text }

// Uses reports whether the IDs depend on a field.
func (t *Template) Uses(f Field) bool { return t.uses[f] }

// OfEKCertificate reports whether the value of a field must come from the EK certificate. A serial number is unique
// only among the certificates of one issuer, so a .CA beside .Serial must be that of the same certificate.
func (t *Template) OfEKCertificate(f Field) bool {
	return f == Issuer || f == Serial || f == CA && t.uses[Serial]
}

// FollowsConvention reports whether all IDs are below /spire/agent/tpm, where SPIRE expects the IDs of a plugin
// called "tpm".
func (t *Template) FollowsConvention() bool {
	return strings.HasPrefix(t.path(&Values{}), "/tpm/")
}

// ID forms the ID of one agent. If a field of the template has no value, the error wraps ErrMissing. It is also an
// error if a value cannot be part of a SPIFFE ID's path, or if the ID is too long.
func (t *Template) ID(trustDomain spiffeid.TrustDomain, v *Values) (spiffeid.ID, error) {
	for f, used := range t.uses {
		if !used {
			continue
		}
		if err := Field(f).check(v[f]); err != nil {
			return spiffeid.ID{}, fmt.Errorf("form the agent's ID from %q: %s %w", t.text, Field(f), err)
		}
	}
	path := agentPrefix + t.path(v)
	if len("spiffe://")+len(trustDomain.Name())+len(path) > maxID {
		return spiffeid.ID{}, fmt.Errorf("form the agent's ID from %q: longer than %d bytes", t.text, maxID)
	}
	id, err := spiffeid.FromPath(trustDomain, path)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("form the agent's ID from %q: %w", t.text, err)
	}
	return id, nil
}

// path forms the path below agentPrefix.
func (t *Template) path(v *Values) string {
	var b strings.Builder
	for _, p := range t.parts {
		if p.isField {
			b.WriteString(v[p.field])
		} else {
			b.WriteString(p.text)
		}
	}
	return b.String()
}

// The bytes that values may have.
const (
	hexDigits = "0123456789abcdef"
	nameBytes = hexDigits + "ghijklmnopqrstuvwxyz_-"      // of names in a configuration
	pathBytes = nameBytes + ".ABCDEFGHIJKLMNOPQRSTUVWXYZ" // of a segment of a path (SPIFFE-ID, 2.2)
	hashSize  = 64
)

// fixedLength reports whether all values of a field have the same length.
func (f Field) fixedLength() bool { return f == PubHash || f == Issuer || f == DevIDFingerprint }

// alphabet returns the bytes that the values of a field may have.
func (f Field) alphabet() string {
	switch f {
	case Name:
		return pathBytes
	case CA:
		return nameBytes
	default:
		return hexDigits
	}
}

// check refuses a value that would break what checkSegments relies on.
func (f Field) check(value string) error {
	if value == "" {
		return ErrMissing
	}
	if f.fixedLength() && len(value) != hashSize {
		return fmt.Errorf("is %.80q, not a hash in hex", value)
	}
	alphabet := f.alphabet()
	for i := range len(value) {
		if strings.IndexByte(alphabet, value[i]) < 0 {
			return fmt.Errorf("is %.80q, which cannot be a segment of a path: it may only contain %s",
				value, alphabet)
		}
	}
	return nil
}
