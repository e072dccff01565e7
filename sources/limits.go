package sources

import (
	"cmp"
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
	PrefixPCR          = "pcr:"
	PrefixSecureBoot   = "secureboot:"
	PrefixBoot         = "boot:"
	PrefixSVIDKey      = "svid_key:"

	PrefixDevIDSubjectCN           = "devid:subject:cn:"
	PrefixDevIDSubjectO            = "devid:subject:o:"
	PrefixDevIDSubjectOU           = "devid:subject:ou:"
	PrefixDevIDSubjectSerialNumber = "devid:subject:serialnumber:"
	PrefixDevIDIssuerCN            = "devid:issuer:cn:"
	PrefixDevIDIssuerO             = "devid:issuer:o:"
	PrefixDevIDIssuerOU            = "devid:issuer:ou:"
	PrefixDevIDSerial              = "devid:serial:"
	PrefixDevIDFingerprint         = "devid:fingerprint:"
)

// The longest texts that fit into a selector after its prefix, in bytes.
const (
	MaxName  = MaxSelector - len(PrefixName)
	MaxLabel = MaxSelector - len(PrefixLabel)
)

// MaxReason is how many bytes of Verdict.Reason and of Verdict.Unchecked are kept.
const MaxReason = 1024

// Tidy returns a without the blanks around its name and labels, and without duplicate labels. It
// returns an error for the first limit that a exceeds. A database pads a char(20) with blanks, and
// no SPIFFE ID could be formed from those. The result shares no labels with a.
func (a Attributes) Tidy() (Attributes, error) {
	if len(a.Labels) > MaxLabels {
		return Attributes{}, tooManyLabels(len(a.Labels))
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

func tooManyLabels(n int) error { return fmt.Errorf("%d labels, more than %d", n, MaxLabels) }

// TrimBlanks returns s without the blanks around it. Control characters are not blanks.
func TrimBlanks(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return unicode.Is(unicode.Zs, r) })
}

// Validate returns an error for the first limit that a exceeds.
func (a Attributes) Validate() error {
	if len(a.Labels) > MaxLabels {
		return tooManyLabels(len(a.Labels))
	}
	if err := checkTrimmed(PrefixName, "name", a.Name); err != nil {
		return err
	}
	for i, l := range a.Labels {
		err := checkTrimmed(PrefixLabel, "label", l)
		if l == "" {
			err = errors.New("an empty label")
		}
		if err != nil {
			return fmt.Errorf("label %d: %w", i+1, err)
		}
	}
	for i, ca := range a.CAs {
		if ca == "" {
			return errors.New("an empty CA")
		}
		if i > 0 && a.CAs[i-1] >= ca {
			return fmt.Errorf("CAs are not sorted or not unique: %q before %q", a.CAs[i-1], ca)
		}
		if err := CheckText(PrefixCA, "CA", ca); err != nil {
			return err
		}
	}
	for _, profile := range a.Profiles {
		err := CheckText(PrefixBoot, "profile's name", profile)
		if profile == "" {
			err = errors.New("a profile without a name")
		}
		if err != nil {
			return err
		}
	}
	if a.Certificate != nil {
		if err := a.Certificate.validate(); err != nil {
			return err
		}
	}
	if a.DevID != nil {
		return a.DevID.validate()
	}
	return nil
}

func (c *EKCertificate) validate() error {
	if !isHash(c.IssuerKeyHash) {
		return errors.New("the issuer's key hash is not 64 lower-case hex digits")
	}
	if !isSerial(PrefixSerial, c.Serial) {
		return errors.New("the serial is not lower-case hex without leading zeros, or is too long")
	}
	return cmp.Or(
		CheckText(PrefixIssuerCN, "issuer's common name", c.IssuerCN),
		CheckText(PrefixManufacturer, "manufacturer", c.Manufacturer),
		CheckText(PrefixModel, "model", c.Model),
		CheckText(PrefixVersion, "version", c.Version),
	)
}

func (c *DevIDCertificate) validate() error {
	if !isHash(c.Fingerprint) {
		return errors.New("the DevID's fingerprint is not 64 lower-case hex digits")
	}
	if c.Serial != "" && !isSerial(PrefixDevIDSerial, c.Serial) {
		return errors.New("the DevID's serial is not lower-case hex without leading zeros, or is too long")
	}
	for prefix, value := range c.Values() {
		if value == "" && prefix != PrefixDevIDSerial {
			return errors.New("an empty name of a DevID")
		}
		if err := CheckText(prefix, "value of "+strings.TrimSuffix(prefix, ":"), value); err != nil {
			return err
		}
	}
	return nil
}

// isHash reports whether s is a SHA-256 in lower-case hex.
func isHash(s string) bool {
	h, err := ParseEKHash(s)
	return err == nil && h.String() == s
}

// isSerial reports whether s is a serial number that fits into a selector after the prefix.
func isSerial(prefix, s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == "" && (s[0] != '0' || s == "0") &&
		len(prefix)+len(s) <= MaxSelector
}

// checkTrimmed is CheckText for a text from which Tidy removes the blanks.
func checkTrimmed(prefix, what, s string) error {
	if s != TrimBlanks(s) {
		return fmt.Errorf("a %s with blanks around it", what)
	}
	return CheckText(prefix, what, s)
}

// CheckText returns an error if a text cannot become a selector with the given prefix and part of a
// log line: the selector would be longer than MaxSelector, or the text is not UTF-8 or has a
// control character. what says what the text is. The error does not quote the text, since the error
// is logged.
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
