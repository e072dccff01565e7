package eventlog

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"unicode/utf16"
)

// A GUID is encoded as in UEFI's structures: the first three fields are little endian.
type GUID [16]byte

// GUIDs of variables.
var (
	// globalGUID is EFI_GLOBAL_VARIABLE, 8be4df61-93ca-11d2-aa0d-00e098032b8c.
	globalGUID = GUID{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	// securityGUID is EFI_IMAGE_SECURITY_DATABASE_GUID, d719b2cb-3d3a-4596-a3bc-dad00e67656f.
	securityGUID = GUID{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	// shimGUID is shim's SHIM_LOCK_GUID, 605dab50-e046-4300-abb6-3dd810dd8b23.
	shimGUID = GUID{0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23}
)

// The types of signatures in signature databases (UEFI 2.10, 32.4.1).
var (
	// x509GUID is EFI_CERT_X509_GUID, a5c059a1-94e4-4aa7-87b5-ab155c2bf072.
	x509GUID = GUID{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
	// sha256GUID is EFI_CERT_SHA256_GUID, c1c41626-504c-4092-aca9-41f936934328.
	sha256GUID = GUID{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
)

// Variable is a UEFI variable in an event (UEFI_VARIABLE_DATA, profile, 10.4.2.2).
type Variable struct {
	GUID GUID
	Name string
	Data []byte

	// Rest is what follows the variable. Firmware writes nothing there; old versions of shim write
	// and measure five zeros.
	Rest []byte
}

// maxName limits the length of a variable's name, in UTF-16 units.
const maxName = 1024

// ParseVariable reads the variable in the data of an event.
func ParseVariable(data []byte) (*Variable, error) {
	r := &reader{b: data}
	guid := r.take(16)
	units, size := r.u64(), r.u64()
	if r.err == nil && units > maxName {
		return nil, errors.New("the variable has a name that is too long")
	}
	name := r.take(2 * units)
	v := &Variable{Data: r.take(size), Rest: r.b}
	if r.err != nil {
		return nil, r.err
	}
	copy(v.GUID[:], guid)
	v.Name = decodeUTF16(name)
	return v, nil
}

func decodeUTF16(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = uint16(b[2*i]) | uint16(b[2*i+1])<<8
	}
	return string(utf16.Decode(units))
}

// encode returns the variable as firmware measures it. The name is ASCII.
func (v *Variable) encode() []byte {
	b := make([]byte, 32, 32+2*len(v.Name)+len(v.Data)+len(v.Rest))
	copy(b, v.GUID[:])
	b[16], b[17] = byte(len(v.Name)), byte(len(v.Name)>>8)
	b[24], b[25] = byte(len(v.Data)), byte(len(v.Data)>>8)
	for i := range len(v.Name) {
		b = append(b, v.Name[i], 0)
	}
	return append(append(b, v.Data...), v.Rest...)
}

// is reports whether v is the variable with this name and GUID, with nothing after it.
func (v *Variable) is(guid GUID, name string) bool {
	return v.GUID == guid && v.Name == name && len(v.Rest) == 0
}

var errDatabase = errors.New("it is not a list of signatures")

// readDatabase reads a signature database: any number of EFI_SIGNATURE_LIST structures (UEFI 2.10,
// 32.4.1). It calls entry with each signature, without its owner. If it returns an error, the
// caller must discard what entry was called with.
func readDatabase(b []byte, entry func(kind GUID, data []byte)) error {
	const header, owner = 16 + 3*4, 16
	r := &reader{b: b}
	for len(r.b) > 0 {
		var kind GUID
		copy(kind[:], r.take(16))
		size, headerSize, each := uint64(r.u32()), uint64(r.u32()), uint64(r.u32())
		if r.err != nil || size < header+headerSize || each <= owner {
			return errDatabase
		}
		list := &reader{b: r.take(size - header)}
		list.take(headerSize)
		if r.err != nil || uint64(len(list.b))%each != 0 {
			return errDatabase
		}
		for len(list.b) > 0 {
			entry(kind, list.take(each)[owner:])
		}
	}
	return nil
}

// isCertificate reports whether b is a single DER sequence, as a certificate is. It does not parse
// further: only the hash matters, and some real certificates have serial numbers that crypto/x509
// refuses.
func isCertificate(b []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(b, &v)
	return err == nil && len(rest) == 0 && v.Class == asn1.ClassUniversal &&
		v.Tag == asn1.TagSequence && v.IsCompound && len(v.Bytes) > 0
}

// authority returns the certificate in a variable that names what has verified an image, or nil if
// it is not a certificate. The variable's data are an EFI_SIGNATURE_DATA; old versions of shim
// leave out its owner.
func (v *Variable) authority() []byte {
	const padding = 7 // the most by which the size of shim's structure is rounded up
	if len(v.Rest) > padding || len(bytes.Trim(v.Rest, "\x00")) > 0 {
		return nil
	}
	if isCertificate(v.Data) {
		return v.Data
	}
	if len(v.Data) > 16 && isCertificate(v.Data[16:]) {
		return v.Data[16:]
	}
	return nil
}
