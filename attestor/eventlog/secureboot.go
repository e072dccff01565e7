package eventlog

import (
	"bytes"
	"fmt"
	"slices"
)

// separator is what firmware measures into PCRs 0 to 7 before it starts the system.
var separator = []byte{0, 0, 0, 0}

// otherSeparators are what firmware may measure instead of the separator: the specification's other
// value, and the value that reports an error, in both byte orders.
var otherSeparators = [][]byte{{0xff, 0xff, 0xff, 0xff}, {1, 0, 0, 0}, {0, 0, 0, 1}}

// measured is an event of PCR 7. That PCR replays.
type measured struct {
	number   int
	digest   []byte
	data     []byte    // nil unless they hash to the digest
	variable *Variable // nil unless the data are a variable
}

// measuredBy returns what is verified of an event.
//
// Old versions of shim log one byte more than they measure. If the data without the last byte hash
// to the digest, they are verified as well: no other data have that hash.
func (j *judge) measuredBy(e *Event) measured {
	m := measured{number: e.Number, digest: e.Digest(j.bank.name)}
	is := func(data []byte) bool {
		j.scratch = sum(j.h, j.scratch[:0], data)
		return bytes.Equal(j.scratch, m.digest)
	}
	switch n := len(e.Data); {
	case is(e.Data):
		m.data = e.Data
	case n > 0 && is(e.Data[:n-1]):
		m.data = e.Data[:n-1]
	default:
		return m
	}
	if v, err := ParseVariable(m.data); err == nil {
		m.variable = v
	}
	return m
}

// pcr7 judges what the log says of Secure Boot. All of that depends on PCR 7 and its separator:
// after the separator, systems can extend what they like.
func (j *judge) pcr7() {
	out := &j.out
	none := func(why string) {
		out.NoSecureBoot = why
		out.DB.Partial, out.DBX.Partial, out.Authorities.Partial = why, why, why
	}
	if why := j.noReplay(7); why != "" {
		none(why)
		return
	}
	var all []measured
	for _, e := range j.extended(7) {
		all = append(all, j.measuredBy(e))
	}
	end := j.hash(separator)
	i := slices.IndexFunc(all, func(m measured) bool { return bytes.Equal(m.digest, end) })
	if i < 0 {
		none("PCR 7 has no separator")
		return
	}
	before, after := all[:i], all[i+1:]
	if e := j.find(before, j.isOtherSeparator()); e != 0 {
		none(fmt.Sprintf("PCR 7 has another separator (event %d) before the one of 0: "+
			"firmware may have reported an error", e))
		return
	}
	out.SecureBoot, out.NoSecureBoot = j.secureBoot(before, all)
	out.DB = database(before, "db", x509GUID)
	out.DBX = database(before, "dbx", sha256GUID)
	out.Authorities = authorities(after)
}

// secureBoot returns the state that the variable SecureBoot proves, or why it proves none. before
// are the events before the separator; all are those of the whole PCR 7.
func (j *judge) secureBoot(before, all []measured) (state, why string) {
	m, why := j.secureBootVariable(before)
	if why != "" {
		return "", why
	}
	value := m.variable.Data
	switch {
	case len(value) == 0, len(value) == 1 && value[0] == 0:
		return "disabled", ""
	case len(value) != 1 || value[0] != 1:
		return "", fmt.Sprintf("the variable SecureBoot (event %d) is neither empty nor 0 nor 1", m.number)
	}
	if e := j.find(all, j.isDebugMode()); e != 0 {
		return "", fmt.Sprintf("firmware was in UEFI Debug Mode (event %d)", e)
	}
	if e := j.find(all, j.isInsecure()); e != 0 {
		return "", fmt.Sprintf("shim does not verify what it starts: MokSBState is set (event %d)", e)
	}
	return "enabled", ""
}

// find returns the number of the first event for which holds returns true, or 0.
func (j *judge) find(all []measured, holds func(*measured) bool) int {
	for i := range all {
		if holds(&all[i]) {
			return all[i].number
		}
	}
	return 0
}

// secureBootVariable returns the event of the variable SecureBoot, of which there must be only one.
// Others are recognised by their name, with any GUID. Since their data may be hidden, they are
// recognised by the digests of the possible values as well.
func (j *judge) secureBootVariable(before []measured) (*measured, string) {
	var hidden [][]byte
	for _, value := range []string{"", "\x00", "\x01"} {
		v := Variable{GUID: globalGUID, Name: "SecureBoot", Data: []byte(value)}
		hidden = append(hidden, j.hash(v.encode()))
	}
	var found []*measured
	for i := range before {
		m := &before[i]
		switch {
		case m.data == nil && contains(hidden, m.digest), m.variable != nil && m.variable.Name == "SecureBoot":
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0:
		return nil, "PCR 7 has no variable SecureBoot before its separator"
	case len(found) > 1:
		return nil, fmt.Sprintf("PCR 7 has more than one variable SecureBoot before its separator (events %d and %d)",
			found[0].number, found[1].number)
	}
	m := found[0]
	if m.data == nil {
		return nil, fmt.Sprintf("the data of the variable SecureBoot (event %d) do not hash to its digest", m.number)
	}
	if !m.variable.is(globalGUID, "SecureBoot") {
		return nil, fmt.Sprintf("the variable SecureBoot (event %d) is not the global variable of that name", m.number)
	}
	return m, ""
}

// isOtherSeparator returns a function that recognises, by its digest, a separator with a value
// other than 0. If there is one, firmware had already ended its measurements, so the system could
// have extended what follows, such as a variable SecureBoot of 1 and a separator of 0.
func (j *judge) isOtherSeparator() func(*measured) bool {
	var digests [][]byte
	for _, value := range otherSeparators {
		digests = append(digests, j.hash(value))
	}
	return func(m *measured) bool { return contains(digests, m.digest) }
}

// isDebugMode returns a function that recognises the text "UEFI Debug Mode" by its digest.
func (j *judge) isDebugMode() func(*measured) bool {
	const text = "UEFI Debug Mode"
	digests := [][]byte{j.hash([]byte(text)), j.hash([]byte(text + "\x00"))}
	return func(m *measured) bool { return contains(digests, m.digest) }
}

// isInsecure returns a function that recognises shim's variable MokSBState with a value other than
// 0. It goes by the name if the data are verified, and by the digest otherwise. Old versions of
// shim measure zeros after a variable, five of them, or one on 32-bit systems, so those digests
// count too.
func (j *judge) isInsecure() func(*measured) bool {
	var hidden map[string]bool
	return func(m *measured) bool {
		if m.data != nil {
			v := m.variable
			return v != nil && v.Name == "MokSBState" && len(bytes.Trim(v.Data, "\x00")) > 0
		}
		if hidden == nil { // ordinary machines never need it
			hidden = make(map[string]bool)
			for value := 1; value <= 0xff; value++ {
				v := Variable{GUID: shimGUID, Name: "MokSBState", Data: []byte{byte(value)}}
				for _, zeros := range []int{0, 1, 5} {
					v.Rest = make([]byte, zeros)
					hidden[string(j.hash(v.encode()))] = true
				}
			}
		}
		return hidden[string(m.digest)]
	}
}

func contains(digests [][]byte, d []byte) bool {
	return slices.ContainsFunc(digests, func(o []byte) bool { return bytes.Equal(o, d) })
}

// database returns what a signature database holds of one kind: the SHA-256 hashes of certificates,
// or the SHA-256 digests themselves. before are the events before the separator. If the database
// was measured twice, it is not known which of the two was used, and the set is empty.
func database(before []measured, name string, kind GUID) (out Measured) {
	var found []*measured
	for i := range before {
		switch m := &before[i]; {
		case m.data == nil:
			out.partial("event %d, before the separator of PCR 7, cannot be verified", m.number)
		case m.variable != nil && m.variable.is(securityGUID, name):
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		out.Partial = fmt.Sprintf("PCR 7 has the variable %s %d times before its separator", name, len(found))
		return out
	}
	m := found[0]
	others := 0
	err := readDatabase(m.variable.Data, func(of GUID, data []byte) {
		switch {
		case of != kind, kind == x509GUID && !isCertificate(data), kind == sha256GUID && len(data) != 32:
			others++
		case kind == x509GUID:
			out.add(certificateHash(data))
		default:
			out.add(data)
		}
	})
	if err != nil {
		return Measured{Partial: fmt.Sprintf("the variable %s (event %d): %v", name, m.number, err)}
	}
	if others > 0 {
		out.partial("the variable %s (event %d) has %d entries of another kind", name, m.number, others)
	}
	out.finish()
	return out
}

// authorities returns the hashes of the certificates that have verified images. after are the
// events after the separator.
func authorities(after []measured) (out Measured) {
	for _, m := range after {
		switch {
		case m.data == nil:
			out.partial("event %d, behind the separator of PCR 7, cannot be verified", m.number)
		case m.variable == nil:
			if !isText(m.data) && !bytes.Equal(m.data, separator) {
				out.partial("event %d, behind the separator of PCR 7, is not a variable", m.number)
			}
		case m.variable.isShims():
		default:
			der := m.variable.authority()
			if der == nil {
				out.partial("event %d, behind the separator of PCR 7, is a variable without a certificate", m.number)
				continue
			}
			out.add(certificateHash(der))
		}
	}
	out.finish()
	return out
}

// isShims reports whether v is a variable that shim measures and that does not name an authority.
func (v *Variable) isShims() bool {
	switch v.Name {
	case "Shim", "SbatLevel", "MokListTrusted", "MokSBState":
		return v.GUID == shimGUID
	}
	return false
}

// isText reports whether b is printable ASCII, like the texts that firmware measures. Variables and
// certificates are not.
func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}
