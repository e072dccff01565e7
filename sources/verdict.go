package sources

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The limits of what a source may say about a TPM.
const (
	// MaxText is the longest name, label or other text, in bytes.
	MaxText = 255
	// MaxLabels is the largest number of labels of one TPM.
	MaxLabels = 64
)

// maxReason is how much of a Verdict.Reason is kept, in bytes.
const maxReason = 1024

// Verdict is what one source says of one Evidence. The zero Verdict says that
// the TPM is not listed.
type Verdict struct {
	// Listed is true where the source knows the TPM.
	Listed bool

	// Reason says why, for the people who read the server's log. It may be
	// empty, it never holds a secret, and the agent never sees it. A Set
	// keeps its first 1024 bytes.
	Reason string

	// Attributes are what the source knows about a TPM that it lists; zero
	// where Listed is false.
	Attributes Attributes
}

// Attributes are what a source knows about a TPM that it lists. They become
// selectors, so a Set takes an answer that breaks the limits below for "cannot
// tell". All text is UTF-8 without control characters, at most MaxText bytes.
type Attributes struct {
	// Name is the machine's name in a list, or empty.
	Name string

	// Labels are the machine's labels in a list, at most MaxLabels, none
	// empty.
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

// Validate reports the first limit that a breaks.
func (a Attributes) Validate() error {
	if err := CheckText("name", a.Name); err != nil {
		return err
	}
	if len(a.Labels) > MaxLabels {
		return fmt.Errorf("%d labels, more than %d", len(a.Labels), MaxLabels)
	}
	for i, l := range a.Labels {
		if err := checkItem("label", l); err != nil {
			return fmt.Errorf("label %d: %w", i+1, err)
		}
	}
	for i, ca := range a.CAs {
		if err := checkItem("CA", ca); err != nil {
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
	if !isHex(c.Serial) || len(c.Serial) > 1 && c.Serial[0] == '0' || len(c.Serial) > MaxText {
		return errors.New("the serial is not lower-case hex without leading zeros")
	}
	for _, t := range []struct{ what, text string }{
		{"issuer's common name", c.IssuerCN},
		{"manufacturer", c.Manufacturer},
		{"model", c.Model},
		{"version", c.Version},
	} {
		if err := CheckText(t.what, t.text); err != nil {
			return err
		}
	}
	return nil
}

func checkItem(what, s string) error {
	if s == "" {
		return fmt.Errorf("an empty %s", what)
	}
	return CheckText(what, s)
}

// CheckText reports what is wrong with a text that is to become a selector and a
// part of a line in a log: it is longer than MaxText, not UTF-8, or has a control
// character. What says what the text is. The error does not quote it, since it
// ends in a log.
func CheckText(what, s string) error {
	switch {
	case len(s) > MaxText:
		return fmt.Errorf("a %s of %d bytes, more than %d", what, len(s), MaxText)
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

// settle turns what a source returned into what the Set goes on with: zero with
// an error, without attributes where the TPM is not listed, within the limits,
// and sharing no memory with the source. proven is true after the challenge;
// fetches is true where the source may say that it needs the network.
func settle(v Verdict, err error, proven, fetches bool) (Verdict, error) {
	if err != nil {
		// The source's error is looked into and put into words here, under the
		// guard: its methods are the source's code too.
		if errors.Is(err, ErrNeedsChallenge) && proven {
			return Verdict{}, errors.New("asks for the challenge after the challenge")
		}
		if errors.Is(err, ErrNeedsNetwork) && !fetches {
			// Not wrapped: nothing would come of its being asked again.
			return Verdict{}, errors.New("asks for a network that it cannot be given: " + err.Error())
		}
		return Verdict{}, fmt.Errorf("%w", err)
	}
	v.Reason = strings.ToValidUTF8(v.Reason[:min(len(v.Reason), maxReason)], "")
	if !v.Listed {
		return Verdict{Reason: v.Reason}, nil
	}
	if err := v.Attributes.Validate(); err != nil {
		return Verdict{}, fmt.Errorf("lists the TPM with attributes that are not allowed: %w", err)
	}
	a := &v.Attributes
	a.Labels, a.CAs = slices.Clone(a.Labels), slices.Clone(a.CAs)
	if a.Certificate != nil {
		c := *a.Certificate
		a.Certificate = &c
	}
	return v, nil
}
