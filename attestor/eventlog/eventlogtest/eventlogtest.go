// Package eventlogtest builds event logs for tests and computes the PCRs of a machine that has
// written them. It shares no code with package eventlog.
//
// A test of an attack combines the PCRs of what a machine did with the bytes of what it says:
//
//	did := eventlogtest.Boot{SecureBoot: []byte{0}}.Log()
//	says := did.Clone()
//	says.Events[i] = …
//	log, err := eventlog.Parse(says.Bytes())
//	judged, err := log.Judge("sha256", did.PCRs("sha256"))
package eventlogtest

import (
	"crypto"
	_ "crypto/sha1" // the hashes of banks
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// Types of events (TCG PC Client Platform Firmware Profile 1.06, 10.4.1).
const (
	NoAction          = 3
	Separator         = 4
	Action            = 5
	CRTMVersion       = 8
	IPL               = 0xd
	VariableConfig    = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	Application       = 0x80000003 // EV_EFI_BOOT_SERVICES_APPLICATION
	EFIAction         = 0x80000007
	VariableAuthority = 0x800000e0
)

// GUIDs of variables, as people write them.
const (
	Global   = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	Security = "d719b2cb-3d3a-4596-a3bc-dad00e67656f" // db and dbx
	Shim     = "605dab50-e046-4300-abb6-3dd810dd8b23"
)

// GUIDs of the types of signatures.
const (
	X509   = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
	SHA256 = "c1c41626-504c-4092-aca9-41f936934328"
)

// Event is an event of a log.
type Event struct {
	PCR, Type uint32
	Data      []byte
	// Measured is what was hashed, by default Data.
	Measured []byte
	// Digests are by bank, for events whose digest is not the hash of any bytes that are known. By
	// default they are the hashes of Measured, or zeros if Type is NoAction.
	Digests map[string][]byte
}

// Extends reports whether the event changes a PCR.
func (e *Event) Extends() bool { return e.Type != NoAction }

// Digest returns the digest in a bank, with which a TPM extends the PCR.
func (e *Event) Digest(bank string) []byte {
	if d, ok := e.Digests[bank]; ok {
		return d
	}
	h := hashOf(bank)
	if !e.Extends() {
		return make([]byte, h.Size())
	}
	if e.Measured != nil {
		return digest(h, e.Measured)
	}
	return digest(h, e.Data)
}

// Log is a log. A test may change all of it.
type Log struct {
	Banks  []string
	Events []Event
	// Header is the data of the first event of the crypto-agile form, by default
	// SpecID of Banks.
	Header []byte
}

// New returns a log without events. The default bank is "sha256".
func New(banks ...string) *Log {
	if len(banks) == 0 {
		banks = []string{"sha256"}
	}
	return &Log{Banks: banks}
}

// Clone returns a copy. Its list of events can be changed without affecting l; what the events
// point to is shared.
func (l *Log) Clone() *Log {
	c := *l
	c.Events = slices.Clone(l.Events)
	return &c
}

// Add adds an event whose digest is that of its data.
func (l *Log) Add(pcr, typ uint32, data []byte) *Log {
	return l.AddEvent(Event{PCR: pcr, Type: typ, Data: data})
}

// AddEvent adds an event.
func (l *Log) AddEvent(e Event) *Log {
	l.Events = append(l.Events, e)
	return l
}

// Text adds an EV_EFI_ACTION.
func (l *Log) Text(pcr uint32, text string) *Log { return l.Add(pcr, EFIAction, []byte(text)) }

// Locality adds the event that states the startup locality.
func (l *Log) Locality(n byte) *Log {
	return l.Add(0, NoAction, append([]byte("StartupLocality\x00"), n))
}

// Separators adds the separator to each PCR.
func (l *Log) Separators(pcrs ...uint32) *Log {
	for _, pcr := range pcrs {
		l.Add(pcr, Separator, make([]byte, 4))
	}
	return l
}

// Config adds a variable to PCR 7 as firmware does before the separator.
func (l *Log) Config(guid, name string, value []byte) *Log {
	return l.Add(7, VariableConfig, Variable(guid, name, value))
}

// Authority adds a variable to PCR 7 as firmware and shim do after the separator. Its value is
// usually a Signature with a certificate.
func (l *Log) Authority(guid, name string, value []byte) *Log {
	return l.Add(7, VariableAuthority, Variable(guid, name, value))
}

// Image adds to PCR 4 the event of a program that firmware has started. In a real log the digest is
// the program's Authenticode hash, and the data say where the program was; here the digest is the
// hash of program.
func (l *Log) Image(program []byte) *Log {
	return l.AddEvent(Event{PCR: 4, Type: Application, Data: []byte("\\EFI\\BOOT"), Measured: program})
}

// Index returns the place in Events of the n-th event, from 0, of a PCR. It panics if there is none.
func (l *Log) Index(pcr uint32, n int) int {
	for i, e := range l.Events {
		if e.PCR == pcr {
			if n == 0 {
				return i
			}
			n--
		}
	}
	panic(fmt.Sprintf("PCR %d has fewer events", pcr))
}

// PCRs returns the values of a machine's PCRs in a bank: of PCRs 0 to 15, and of others that have
// events.
func (l *Log) PCRs(bank string) map[int][]byte {
	h := hashOf(bank)
	pcrs := make(map[int][]byte)
	for i := range 16 {
		pcrs[i] = make([]byte, h.Size())
	}
	for _, e := range l.Events {
		if e.PCR == 0 && len(e.Data) == 17 && string(e.Data[:16]) == "StartupLocality\x00" && !e.Extends() {
			pcrs[0][h.Size()-1] = e.Data[16]
		}
		if !e.Extends() || e.PCR > 23 {
			continue
		}
		old := pcrs[int(e.PCR)]
		if old == nil {
			old = make([]byte, h.Size())
		}
		pcrs[int(e.PCR)] = digest(h, slices.Concat(old, e.Digest(bank)))
	}
	return pcrs
}

// Bytes returns the log in the crypto-agile form of TPM 2.0, as the kernel exposes it.
func (l *Log) Bytes() []byte {
	header := l.Header
	if header == nil {
		algs := make([]Algorithm, len(l.Banks))
		for i, bank := range l.Banks {
			algs[i] = AlgorithmOf(bank)
		}
		header = SpecID(uint32(len(algs)), algs...)
	}
	b := sha1Event(0, NoAction, make([]byte, 20), header)
	for _, e := range l.Events {
		b = binary.LittleEndian.AppendUint32(b, e.PCR)
		b = binary.LittleEndian.AppendUint32(b, e.Type)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(l.Banks)))
		for _, bank := range l.Banks {
			b = binary.LittleEndian.AppendUint16(b, AlgorithmOf(bank).ID)
			b = append(b, e.Digest(bank)...)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
	}
	return b
}

// SHA1Form returns the log in the SHA-1 form.
func (l *Log) SHA1Form() []byte {
	var b []byte
	for _, e := range l.Events {
		b = append(b, sha1Event(e.PCR, e.Type, e.Digest("sha1"), e.Data)...)
	}
	return b
}

func sha1Event(pcr, typ uint32, digest, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, pcr)
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = append(b, digest...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// Algorithm is a bank in the header of a log.
type Algorithm struct{ ID, Size uint16 }

// AlgorithmOf returns the algorithm of a bank.
func AlgorithmOf(bank string) Algorithm {
	return Algorithm{
		ID:   map[string]uint16{"sha1": 4, "sha256": 0xb, "sha384": 0xc, "sha512": 0xd}[bank],
		Size: uint16(hashOf(bank).Size()),
	}
}

// SpecID returns the data of the header (TCG_EfiSpecIdEvent), which claims to list count
// algorithms.
func SpecID(count uint32, algs ...Algorithm) []byte {
	b := []byte("Spec ID Event03\x00\x00\x00\x00\x00\x00\x02\x00\x02")
	b = binary.LittleEndian.AppendUint32(b, count)
	for _, a := range algs {
		b = binary.LittleEndian.AppendUint16(b, a.ID)
		b = binary.LittleEndian.AppendUint16(b, a.Size)
	}
	return append(b, 0) // vendorInfoSize
}

// Variable returns a UEFI_VARIABLE_DATA.
func Variable(guid, name string, value []byte) []byte {
	b := GUID(guid)
	units := utf16.Encode([]rune(name))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, value...)
}

// GUID parses a GUID in its usual text form and returns its bytes.
func GUID(s string) []byte {
	var a uint32
	var b, c uint16
	var d, e uint64
	if _, err := fmt.Sscanf(strings.ToLower(s), "%08x-%04x-%04x-%04x-%012x", &a, &b, &c, &d, &e); err != nil {
		panic(fmt.Sprintf("the GUID %q: %v", s, err))
	}
	out := binary.LittleEndian.AppendUint32(nil, a)
	out = binary.LittleEndian.AppendUint16(out, b)
	out = binary.LittleEndian.AppendUint16(out, c)
	return binary.BigEndian.AppendUint64(out, d<<48|e)
}

// Signature returns an EFI_SIGNATURE_DATA with an owner: the value of an authority variable.
func Signature(data []byte) []byte {
	return append(GUID("77fa9abd-0359-4d32-bd60-28f4e78f784b"), data...)
}

// Database returns the value of a signature database: one list for each entry, since certificates
// differ in size.
func Database(kind string, entries ...[]byte) []byte {
	var b []byte
	for _, e := range entries {
		s := Signature(e)
		b = append(b, GUID(kind)...)
		b = binary.LittleEndian.AppendUint32(b, uint32(28+len(s))) // SignatureListSize
		b = binary.LittleEndian.AppendUint32(b, 0)                 // SignatureHeaderSize
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))    // SignatureSize
		b = append(b, s...)
	}
	return b
}

func hashOf(bank string) crypto.Hash {
	h := map[string]crypto.Hash{
		"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512,
	}[bank]
	if h == 0 {
		panic(fmt.Sprintf("no hash for the bank %q", bank))
	}
	return h
}

func digest(h crypto.Hash, b []byte) []byte {
	w := h.New()
	w.Write(b)
	return w.Sum(nil)
}
