package sources

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLabels is the largest number of labels of one TPM.
const MaxLabels = 64

// MaxSelector is the longest selector in bytes, with its prefix: SPIRE keeps it in
// a column of 255 characters.
const MaxSelector = 255

// The prefixes of selectors.
const (
	PrefixPubHash      = "pub_hash:"
	PrefixSource       = "source:"
	PrefixRule         = "rule:"
	PrefixName         = "name:"
	PrefixLabel        = "label:"
	PrefixCA           = "ca:"
	PrefixIssuerCN     = "ek:issuer:cn:"
	PrefixSerial       = "ek:serial:"
	PrefixManufacturer = "manufacturer:"
	PrefixModel        = "model:"
	PrefixVersion      = "version:"
)

// The longest texts that fit into a selector behind its prefix, in bytes.
const (
	MaxName  = MaxSelector - len(PrefixName)
	MaxLabel = MaxSelector - len(PrefixLabel)
)

// MaxReason is how much of Verdict.Reason and of Verdict.Unchecked is kept, in bytes.
const MaxReason = 1024

// Verdict is what one source says of one Evidence. The zero Verdict says that
// the TPM is not listed.
type Verdict struct {
	// Listed is true where the source knows the TPM.
	Listed bool

	// Reason says why, for the people who read the server's log. It may be
	// empty, it never holds a secret, and the agent never sees it. Its first
	// MaxReason bytes are kept.
	Reason string

	// Unchecked says, if the TPM is listed although something could not be checked
	// that the operator wants checked if possible, what that is and why: a revocation
	// list that is unavailable, say. It is empty if everything was checked. Its
	// first MaxReason bytes are kept. Reason says it, too.
	Unchecked string

	// Attributes are what the source knows about a TPM that it lists; zero
	// where Listed is false.
	Attributes Attributes
}

// Attributes are what a source knows about a TPM that it lists. They become
// selectors, so an answer that breaks the limits below counts as "cannot
// tell". All text is UTF-8 without control characters, and with the prefix of its
// selector at most MaxSelector bytes.
type Attributes struct {
	// Name is the machine's name in a list, or empty. Blanks around it are no
	// part of it: see Tidy.
	Name string

	// Labels are the machine's labels in a list, at most MaxLabels, none
	// empty. Blanks around a label are no part of it.
	Labels []string

	// CAs are the names of the bundles whose authorities vouch for the EK
	// certificate, none empty, sorted, without duplicates.
	CAs []string

	// Certificate is what a verified EK certificate says, or nil.
	Certificate *EKCertificate
}

// EKCertificate is what an EK certificate says, once its chain is verified. A
// text in the certificate that breaks the limits of Attributes is left empty
// here.
type EKCertificate struct {
	// IssuerCN is the common name of the certificate's issuer, or empty.
	IssuerCN string
	// IssuerKeyHash is the SHA-256 of the DER SubjectPublicKeyInfo of the
	// issuer's key, in 64 lower-case hex digits.
	IssuerKeyHash string
	// Serial is the serial number, in lower-case hex without leading zeros.
	Serial string
	// Manufacturer, Model and Version are the values of the attributes
	// 2.23.133.2.1, .2 and .3 in the subject alternative name (TCG EK
	// Credential Profile 2.5, 3.2.9), as written there, "id:49465800" among
	// them; each may be empty.
	Manufacturer, Model, Version string
}

// Tidy returns a without the blanks around its name and its labels and with each
// label once, or the first limit that a breaks. A database's char(20) is padded
// with blanks, and no SPIFFE ID could be formed of them. The result shares no labels
// with a.
func (a Attributes) Tidy() (Attributes, error) {
	if len(a.Labels) > MaxLabels {
		return Attributes{}, fmt.Errorf("%d labels, more than %d", len(a.Labels), MaxLabels)
	}
	a.Name = TrimBlanks(a.Name)
	var labels []string
	for _, l := range a.Labels {
		if l = TrimBlanks(l); !slices.Contains(labels, l) {
			labels = append(labels, l)
		}
	}
	a.Labels = labels
	if err := a.Validate(); err != nil {
		return Attributes{}, err
	}
	return a, nil
}

// TrimBlanks returns s without the blanks around it. A control character is none.
func TrimBlanks(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return unicode.Is(unicode.Zs, r) })
}

// Validate reports the first limit that a breaks.
func (a Attributes) Validate() error {
	if err := checkNamed(PrefixName, "name", a.Name); err != nil {
		return err
	}
	if len(a.Labels) > MaxLabels {
		return fmt.Errorf("%d labels, more than %d", len(a.Labels), MaxLabels)
	}
	for i, l := range a.Labels {
		if l == "" {
			return fmt.Errorf("label %d: an empty label", i+1)
		}
		if err := checkNamed(PrefixLabel, "label", l); err != nil {
			return fmt.Errorf("label %d: %w", i+1, err)
		}
	}
	for i, ca := range a.CAs {
		if ca == "" {
			return errors.New("an empty CA")
		}
		if err := CheckText(PrefixCA, "CA", ca); err != nil {
			return err
		}
		if i > 0 && a.CAs[i-1] >= ca {
			return fmt.Errorf("CAs are not sorted or not unique: %q before %q", a.CAs[i-1], ca)
		}
	}
	if a.Certificate == nil {
		return nil
	}
	return a.Certificate.validate()
}

func (c *EKCertificate) validate() error {
	if len(c.IssuerKeyHash) != 64 || !isHex(c.IssuerKeyHash) {
		return errors.New("the issuer's key hash is not 64 lower-case hex digits")
	}
	if !isHex(c.Serial) || len(c.Serial) > 1 && c.Serial[0] == '0' ||
		len(PrefixSerial)+len(c.Serial) > MaxSelector {
		return errors.New("the serial is not lower-case hex without leading zeros, or is too long")
	}
	for _, t := range []struct{ prefix, what, text string }{
		{PrefixIssuerCN, "issuer's common name", c.IssuerCN},
		{PrefixManufacturer, "manufacturer", c.Manufacturer},
		{PrefixModel, "model", c.Model},
		{PrefixVersion, "version", c.Version},
	} {
		if err := CheckText(t.prefix, t.what, t.text); err != nil {
			return err
		}
	}
	return nil
}

// checkNamed is CheckText for a text that Tidy trims.
func checkNamed(prefix, what, s string) error {
	if s != TrimBlanks(s) {
		return fmt.Errorf("a %s with blanks around it", what)
	}
	return CheckText(prefix, what, s)
}

// CheckText reports what is wrong with a text that is to become a selector, behind
// a prefix, and a part of a line in a log: the selector is longer than MaxSelector,
// or the text is not UTF-8 or has a control character. What says what the text is.
// The error does not quote it, since it ends in a log.
func CheckText(prefix, what, s string) error {
	switch {
	case len(prefix)+len(s) > MaxSelector:
		return fmt.Errorf("a %s of %d bytes, more than %d", what, len(s), MaxSelector-len(prefix))
	case !utf8.ValidString(s):
		return fmt.Errorf("a %s that is not UTF-8", what)
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("a %s with a control character", what)
	}
	return nil
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}
