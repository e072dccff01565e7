package eventlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// Judged is what a log proves when it is compared with quoted PCRs. It shares no memory with the
// log.
type Judged struct {
	// Replays says for each PCR whether its events hash to the quoted value. It has a member for
	// each of the PCRs 0 to 7 and 14 that was quoted; PCRs 8 and 9 have one only if they were
	// quoted and replay. A PCR without events replays only if it is all zeros.
	Replays map[int]bool
	// SecureBoot is "enabled", "disabled" or, if neither is proved, empty.
	SecureBoot string
	// NoSecureBoot is a text for people that says why SecureBoot is empty. Otherwise it is empty.
	NoSecureBoot string

	// DB are the SHA-256 hashes of the certificates in the signature database db, and DBX the
	// SHA-256 digests in dbx.
	DB, DBX Measured
	// Authorities are the SHA-256 hashes of the certificates that have verified what was booted,
	// except for those that are built into shim.
	Authorities Measured
	// Images are the digests, in PCR 4 of the quoted bank, of the programs that firmware has
	// started.
	Images Measured

	// Events are the events of all PCRs that replay, in the order of the log. Those that extend
	// nothing are not among them.
	Events []JudgedEvent
}

// Measured is a set of digests that a log proves.
type Measured struct {
	Digests [][]byte // each once, in ascending order
	// Partial is empty if Digests is the whole set. Otherwise it says, for people, what is missing
	// from Digests or cannot be verified.
	Partial string
}

// JudgedEvent is an event of a PCR that replays.
type JudgedEvent struct {
	PCR    int
	Number int // Event.Number
	Digest []byte
	What   string // Event.What, which is not verified
}

// Judge compares the log with PCRs that were quoted in a bank, "sha256" or a stronger one; pcrs are
// their values by index. It returns an error if the log cannot be read for that bank. Texts for
// people, including errors, reveal nothing of the log beyond the numbers and types of events.
func (l *Log) Judge(bank string, pcrs map[int][]byte) (*Judged, error) {
	if bank == "sha1" {
		return nil, errors.New("a log is not held against PCRs of the bank sha1: SHA-1 is broken")
	}
	b, err := l.bank(bank)
	if err != nil {
		return nil, err
	}
	j := &judge{log: l, bank: b, h: b.hash.New()}
	j.out.Replays = l.compare(b, pcrs)
	j.images()
	j.pcr7()
	j.events()
	return &j.out, nil
}

// compare reports, for each quoted PCR by which a log is judged, whether the log replays to it.
// Systems extend PCRs 10 to 13 and 15 after the log has ended, and may extend 8 and 9.
func (l *Log) compare(b *bank, quoted map[int][]byte) map[int]bool {
	replays := make(map[int]bool)
	chains := l.replay(b)
	for _, pcr := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14} {
		value, ok := quoted[pcr]
		if !ok {
			continue
		}
		same := l.comesTo(chains, pcr, value)
		if same || pcr != 8 && pcr != 9 {
			replays[pcr] = same
		}
	}
	return replays
}

// judge compares one log with one set of PCRs.
type judge struct {
	log     *Log
	bank    *bank
	h       hash.Hash
	scratch []byte
	out     Judged
}

func (j *judge) hash(b []byte) []byte { return sum(j.h, nil, b) }

// noReplay says why nothing of a PCR is verified. It is empty if the PCR replays.
func (j *judge) noReplay(pcr int) string {
	switch replays, ok := j.out.Replays[pcr]; {
	case !ok:
		return fmt.Sprintf("PCR %d was not quoted", pcr)
	case replays:
		return ""
	case pcr == 0 && j.log.localityErr != nil:
		return j.log.localityErr.Error()
	}
	return fmt.Sprintf("the event log does not replay to PCR %d", pcr)
}

// extended returns the events that have extended a PCR.
func (j *judge) extended(pcr uint32) []*Event {
	var events []*Event
	for i := range j.log.Events {
		if e := &j.log.Events[i]; e.PCR == pcr && e.extends() {
			events = append(events, e)
		}
	}
	return events
}

// events lists the events of all PCRs that replay.
func (j *judge) events() {
	for i := range j.log.Events {
		e := &j.log.Events[i]
		if e.extends() && j.out.Replays[int(e.PCR)] {
			j.out.Events = append(j.out.Events, JudgedEvent{
				PCR: int(e.PCR), Number: e.Number, Digest: bytes.Clone(e.Digest(j.bank.name)), What: e.What(),
			})
		}
	}
}

// notImages are the texts that firmware measures into PCR 4.
var notImages = []string{
	"Calling EFI Application from Boot Option",
	"Returning from EFI Application from Boot Option",
}

// images collects all digests in PCR 4 except those that are known not to be of programs. Neither
// the type nor the data of an event matter: a program that is logged as a text is still a program.
func (j *judge) images() {
	out := &j.out.Images
	if out.Partial = j.noReplay(4); out.Partial != "" {
		return
	}
	others := [][]byte{j.hash(separator)}
	for _, text := range notImages {
		others = append(others, j.hash([]byte(text)))
	}
	for _, e := range j.extended(4) {
		d := e.Digest(j.bank.name)
		if !slices.ContainsFunc(others, func(o []byte) bool { return bytes.Equal(o, d) }) {
			out.add(d)
		}
	}
	out.finish()
	if len(out.Digests) == 0 {
		out.Partial = "PCR 4 has no image: firmware has not measured what it started"
	}
}

func (m *Measured) add(digest []byte) { m.Digests = append(m.Digests, bytes.Clone(digest)) }

// partial sets the reason, unless there is one already.
func (m *Measured) partial(format string, args ...any) {
	if m.Partial == "" {
		m.Partial = fmt.Sprintf(format, args...)
	}
}

// finish sorts the digests and keeps each once.
func (m *Measured) finish() {
	slices.SortFunc(m.Digests, bytes.Compare)
	m.Digests = slices.CompactFunc(m.Digests, bytes.Equal)
}

func certificateHash(der []byte) []byte {
	s := sha256.Sum256(der)
	return s[:]
}
