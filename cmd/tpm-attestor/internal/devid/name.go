package devid

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
)

// maxAttribute is the longest attribute of a subject, in characters (RFC 5280, annex A.1).
const maxAttribute = 64

// completeSubject offers the attributes that parseSubject accepts.
var completeSubject = cli.BeginningWith("CN=", "O=", "OU=", "C=", "L=", "ST=", "serialNumber=")

// parseSubject returns the name that has attributes such as "CN=laptop-17".
func parseSubject(attributes []string) (pkix.Name, error) {
	var n pkix.Name
	many := map[string]*[]string{
		"O": &n.Organization, "OU": &n.OrganizationalUnit, "C": &n.Country, "L": &n.Locality, "ST": &n.Province,
	}
	single := map[string]*string{"CN": &n.CommonName, "serialNumber": &n.SerialNumber}
	for _, a := range attributes {
		name, value, ok := strings.Cut(a, "=")
		switch {
		case !ok || value == "":
			return n, cli.UsageError("--subject %q: write it as CN=laptop-17", a)
		case !utf8.ValidString(value), strings.ContainsFunc(value, unicode.IsControl):
			return n, cli.UsageError("--subject %q: only printable text is allowed", a)
		case utf8.RuneCountInString(value) > maxAttribute:
			return n, cli.UsageError("--subject %s: a value of more than %d characters", name, maxAttribute)
		case many[name] != nil:
			*many[name] = append(*many[name], value)
		case single[name] == nil:
			return n, cli.UsageError("--subject %q: choose CN, O, OU, C, L, ST or serialNumber", a)
		case *single[name] != "":
			return n, cli.UsageError("--subject %s: it is given twice", name)
		default:
			*single[name] = value
		}
	}
	return n, nil
}

var (
	oidSubjectAltName     = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidHardwareModuleName = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4} // RFC 4108, 5
	oidTPM20              = asn1.ObjectIdentifier{2, 23, 133, 1, 2}
	// The policies by which a CA says that it has verified that the key is in a TPM and stays there.
	oidVerifiedResidency = []uint64{2, 23, 133, 11, 1, 1}
	oidVerifiedFixed     = []uint64{2, 23, 133, 11, 1, 2}
)

// hardwareName returns the subject alternative name of a DevID ("TPM 2.0 Keys for Device Identity
// and Attestation", 8.1): a TPM 2.0 and its serial number.
func hardwareName(serial []byte) (pkix.Extension, error) {
	type hardwareModuleName struct {
		Type   asn1.ObjectIdentifier
		Serial []byte
	}
	type otherName struct {
		Type  asn1.ObjectIdentifier
		Value hardwareModuleName `asn1:"tag:0,explicit"`
	}
	type generalNames struct {
		Other otherName `asn1:"tag:0"`
	}
	der, err := asn1.Marshal(generalNames{otherName{oidHardwareModuleName, hardwareModuleName{oidTPM20, serial}}})
	return pkix.Extension{Id: oidSubjectAltName, Value: der}, err
}
