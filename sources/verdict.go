package sources

import (
	"iter"
	"slices"
)

// Verdict is what one source says about one Evidence. The zero Verdict says that the TPM is not
// listed.
type Verdict struct {
	// Listed is true if the source lists the TPM.
	Listed bool

	// Reason says why, for the people who read the server's log. It may be empty. It never contains
	// a secret, and the agent never sees it. Only its first MaxReason bytes are kept.
	Reason string

	// Unchecked is empty if everything was checked. Otherwise the TPM is listed although something
	// could not be checked that the operator wants checked if possible, such as an unavailable
	// revocation list. Unchecked then says what and why, and Reason says so too. Only its first
	// MaxReason bytes are kept.
	Unchecked string

	// Attributes are what the source knows about the TPM; zero if Listed is false.
	Attributes Attributes
}

// Attributes are what a source knows about a TPM that it lists. They become selectors, so an answer
// that exceeds a limit below counts as "cannot tell". All text is UTF-8 without control characters,
// and has at most MaxSelector bytes including the prefix of its selector.
type Attributes struct {
	// Name is the machine's name in a list, or empty. Blanks around it are not part of
	// it: see Tidy.
	Name string

	// Labels are the machine's labels in a list: at most MaxLabels, none of them empty.
	// Blanks around a label are not part of it.
	Labels []string

	// CAs are the names of the bundles with the authorities to which the EK or DevID certificate
	// has a verified chain: none of them empty, sorted, without duplicates.
	CAs []string

	// Certificate is what a verified EK certificate says, or nil.
	Certificate *EKCertificate

	// DevID is what a verified DevID certificate says, or nil.
	DevID *DevIDCertificate

	// Profiles are the names of the boot profiles that the machine's boot meets, none of them
	// empty. They become selectors even if the source is configured to contribute no attributes:
	// the source has verified them, unlike what a list says.
	Profiles []string
}

// Clone returns a copy that shares no memory with a.
func (a Attributes) Clone() Attributes {
	a.Labels, a.CAs, a.Profiles = slices.Clone(a.Labels), slices.Clone(a.CAs), slices.Clone(a.Profiles)
	if a.Certificate != nil {
		c := *a.Certificate
		a.Certificate = &c
	}
	if a.DevID != nil {
		d := *a.DevID
		for _, values := range []*[]string{
			&d.SubjectCN, &d.SubjectO, &d.SubjectOU, &d.SubjectSerialNumber, &d.IssuerCN, &d.IssuerO, &d.IssuerOU,
		} {
			*values = slices.Clone(*values)
		}
		a.DevID = &d
	}
	return a
}

// EKCertificate is what an EK certificate says, once its chain is verified. A text in the
// certificate that exceeds the limits of Attributes is empty here.
type EKCertificate struct {
	// IssuerCN is the common name of the certificate's issuer, or empty.
	IssuerCN string
	// IssuerKeyHash is the SHA-256 of the DER SubjectPublicKeyInfo of the issuer's key,
	// in 64 lower-case hex digits.
	IssuerKeyHash string
	// Serial is the serial number, in lower-case hex without leading zeros.
	Serial string
	// Manufacturer, Model and Version are the values of the attributes 2.23.133.2.1, .2 and .3 in
	// the subject alternative name (TCG EK Credential Profile 2.5, 3.2.9), as they are written
	// there, such as "id:49465800". Each may be empty.
	Manufacturer, Model, Version string
}

// DevIDCertificate is what the certificate of a DevID (IEEE 802.1AR) says, once its chain is
// verified. A name may have several values of one kind. A text in the certificate that exceeds the
// limits of Attributes is left out.
type DevIDCertificate struct {
	// SubjectCN, SubjectO, SubjectOU and SubjectSerialNumber are the common names, organizations,
	// organizational units and serial numbers in the subject. The serial numbers are those of the
	// device (IEEE 802.1AR-2018, 8.6). None of them is empty.
	SubjectCN, SubjectO, SubjectOU, SubjectSerialNumber []string
	// IssuerCN, IssuerO and IssuerOU are the same for the issuer.
	IssuerCN, IssuerO, IssuerOU []string
	// Serial is the certificate's serial number, in lower-case hex without leading zeros, or
	// empty.
	Serial string
	// Fingerprint is the SHA-256 of the certificate in DER, in 64 lower-case hex digits.
	Fingerprint string
}

// Values yields each value with the prefix of its selector.
func (c *DevIDCertificate) Values() iter.Seq2[string, string] {
	return func(yield func(prefix, value string) bool) {
		for _, of := range []struct {
			prefix string
			values []string
		}{
			{PrefixDevIDSubjectCN, c.SubjectCN},
			{PrefixDevIDSubjectO, c.SubjectO},
			{PrefixDevIDSubjectOU, c.SubjectOU},
			{PrefixDevIDSubjectSerialNumber, c.SubjectSerialNumber},
			{PrefixDevIDIssuerCN, c.IssuerCN},
			{PrefixDevIDIssuerO, c.IssuerO},
			{PrefixDevIDIssuerOU, c.IssuerOU},
			{PrefixDevIDSerial, []string{c.Serial}},
			{PrefixDevIDFingerprint, []string{c.Fingerprint}},
		} {
			for _, value := range of.values {
				if !yield(of.prefix, value) {
					return
				}
			}
		}
	}
}
