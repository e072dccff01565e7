package sources

// Verdict is what one source says of one Evidence. The zero Verdict says that the TPM is not
// listed.
type Verdict struct {
	// Listed is true if the source lists the TPM.
	Listed bool

	// Reason says why, for the people who read the server's log. It may be empty. It
	// never holds a secret, and the agent never sees it. Its first MaxReason bytes are
	// kept.
	Reason string

	// Unchecked is empty if everything was checked. If the TPM is listed although
	// something could not be checked that the operator wants checked if possible, such
	// as an unavailable revocation list, Unchecked says what and why, and Reason says so
	// too. Its first MaxReason bytes are kept.
	Unchecked string

	// Attributes are what the source knows about a TPM that it lists; zero if Listed is
	// false.
	Attributes Attributes
}

// Attributes are what a source knows about a TPM that it lists. They become selectors, so an
// answer that breaks a limit below counts as "cannot tell". All text is UTF-8 without control
// characters, and has at most MaxSelector bytes with the prefix of its selector.
type Attributes struct {
	// Name is the machine's name in a list, or empty. Blanks around it are not part of
	// it: see Tidy.
	Name string

	// Labels are the machine's labels in a list: at most MaxLabels, none of them empty.
	// Blanks around a label are not part of it.
	Labels []string

	// CAs are the names of the bundles whose authorities vouch for the EK certificate:
	// none of them empty, sorted, without duplicates.
	CAs []string

	// Certificate is what a verified EK certificate says, or nil.
	Certificate *EKCertificate

	// Profiles are the names of the boot profiles that the machine's boot meets, none of
	// them empty. They become selectors even if the source is configured to contribute no
	// attributes: they are what it has checked, and nothing that a list says.
	Profiles []string
}

// EKCertificate is what an EK certificate says, once its chain is verified. A text that breaks
// the limits of Attributes in the certificate is empty here.
type EKCertificate struct {
	// IssuerCN is the common name of the certificate's issuer, or empty.
	IssuerCN string
	// IssuerKeyHash is the SHA-256 of the DER SubjectPublicKeyInfo of the issuer's key,
	// in 64 lower-case hex digits.
	IssuerKeyHash string
	// Serial is the serial number, in lower-case hex without leading zeros.
	Serial string
	// Manufacturer, Model and Version are the values of the attributes 2.23.133.2.1, .2
	// and .3 in the subject alternative name (TCG EK Credential Profile 2.5, 3.2.9), as
	// written there: "id:49465800" for example. Each may be empty.
	Manufacturer, Model, Version string
}
