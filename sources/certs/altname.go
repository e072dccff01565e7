package certs

import (
	"crypto/x509"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Object identifiers of the TPM's attributes in the subject alternative name of
// an EK certificate (TCG EK Credential Profile 2.5, 3.2.9), as in DER:
// 2.23.133.2.1, .2 and .3.
const (
	oidTPMManufacturer = "\x67\x81\x05\x02\x01"
	oidTPMModel        = "\x67\x81\x05\x02\x02"
	oidTPMVersion      = "\x67\x81\x05\x02\x03"
)

// Every choice of a GeneralName has a context-specific tag (RFC 5280, 4.2.1.6).
const (
	classMask       = asn1.Tag(0xc0)
	contextSpecific = asn1.Tag(0x80)
)

// TPM is what an EK certificate says about its TPM. A value is empty if the certificate does not
// have it, and also if it is longer than a selector may be, holds anything but visible characters
// and spaces, or is given twice with different texts.
type TPM struct{ Manufacturer, Model, Version string }

// TPMOf returns what an EK certificate says about its TPM.
func TPMOf(c *x509.Certificate) (tpm TPM) {
	for _, e := range c.Extensions {
		if standard(e.Id) != subjectAltName {
			continue
		}
		if names, ok := readAltName(e.Value); ok {
			tpm = TPM{names.manufacturer.text, names.model.text, names.version.text}
		}
	}
	return tpm
}

// tpmNames are the TPM's attributes in a subject alternative name.
type tpmNames struct{ manufacturer, model, version tpmName }

// tpmName is one of them. It is empty if it is given with two values.
type tpmName struct {
	text  string
	given bool
}

func (n *tpmName) set(text string) {
	if n.given && n.text != text {
		text = ""
	}
	n.text, n.given = text, true
}

// readAltName reads the TPM's attributes from the directory names in the value of a subject
// alternative name extension (RFC 5280, 4.2.1.6). They may be in one RDN or in several. ok is false
// if the value is malformed.
func readAltName(value []byte) (tpm tpmNames, ok bool) {
	in := cryptobyte.String(value)
	var names cryptobyte.String
	if !in.ReadASN1(&names, asn1.SEQUENCE) || !in.Empty() {
		return tpmNames{}, false
	}
	directoryName := asn1.Tag(4).ContextSpecific().Constructed()
	for !names.Empty() {
		var name cryptobyte.String
		var tag asn1.Tag
		if !names.ReadAnyASN1(&name, &tag) || tag&classMask != contextSpecific {
			return tpmNames{}, false
		}
		if tag == directoryName && !walkName(name, tpm.collect) {
			return tpmNames{}, false
		}
	}
	return tpm, true
}

// collect adds the TPM's attributes in rdn.
func (tpm *tpmNames) collect(rdn []attribute) {
	for _, a := range rdn {
		var n *tpmName
		switch string(a.oid) {
		case oidTPMManufacturer:
			n = &tpm.manufacturer
		case oidTPMModel:
			n = &tpm.model
		case oidTPMVersion:
			n = &tpm.version
		default:
			continue
		}
		text, _ := a.text()
		n.set(Presentable("", string(text)))
	}
}

// Presentable returns s if it can become a selector with the given prefix, and otherwise an empty
// string.
func Presentable(prefix, s string) string {
	if len(prefix)+len(s) > sources.MaxSelector || !utf8.ValidString(s) {
		return ""
	}
	for _, r := range s {
		if !unicode.IsGraphic(r) || r == utf8.RuneError {
			return ""
		}
	}
	return s
}
