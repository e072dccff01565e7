// Package eventlog reads the log in which a machine's firmware and boot loaders record what they
// extend into PCRs (TCG PC Client Platform Firmware Profile 1.06, 10), and compares it with PCRs
// that a TPM has quoted.
//
// A log is only a claim by the machine that sends it: whoever controls the machine can rewrite it.
// Only what hashes to a quoted value is verified: for each PCR that replays, its events, their
// order, their digests, and the data of those events whose data hash to the digest. The type of an
// event is never verified, so no decision depends on it. Events that claim to extend nothing
// (EV_NO_ACTION) are left out of the hash; if that claim is false, the PCR does not replay. The
// order of events in different PCRs is not verified.
//
// The package does no I/O, keeps nothing between calls, and its functions may be called concurrently.
package eventlog

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" //nolint:gosec // G505: a log's own hash, of which nothing is trusted
	_ "crypto/sha256"
	_ "crypto/sha512"
	"errors"
	"fmt"
	"slices"
)

// Limits of a log. Parse refuses a log that exceeds one.
const (
	MaxSize   = 256 << 10 // bytes
	MaxEvents = 4096
)

// maxBanks is more than any TPM has. maxDigest is the size of a TPM's largest digest, in bytes.
const (
	maxBanks  = 16
	maxDigest = 64
)

// pcrCount is the number of PCRs of a TPM for a PC. Events of other PCRs are read but extend
// nothing.
const pcrCount = 24

// Log is a parsed log. Callers must not change its fields.
type Log struct {
	// Banks are the banks for which the log claims to have digests, in its order: "sha1", "sha256",
	// "sha384", "sha512", "sm3_256", or, for an unknown hash, its algorithm: "0x0027".
	Banks []string
	// Events are the events in the order of the log. The header is not among them.
	Events []Event

	banks    []bank // as Banks
	sha1Form bool   // digests have no algorithm before them

	locality    uint8
	localityErr error
}

// Event is an event as the log has it. None of it is verified.
type Event struct {
	PCR    uint32 // any value: firmware uses 0xFFFFFFFF for events of no PCR
	Type   uint32
	Number int    // the place of the event in the log, from 1
	Data   []byte // a slice of what Parse was given

	digests []byte // encoded, as in the log
	log     *Log
}

// bank is a bank for which a log claims to have digests.
type bank struct {
	alg  uint16 // TPM_ALG_ID
	name string
	size int         // of a digest, in bytes
	hash crypto.Hash // 0 if the hash is not known here
}

// Parse reads a log in the crypto-agile form of TPM 2.0 (TCG_PCR_EVENT2) or in the SHA-1 form
// (TCG_PCR_EVENT). For any input, it uses memory in proportion to len(data), and for at most
// MaxEvents events. The Log keeps data, which the caller must not change.
//
// It refuses what firmware never writes: a digest of a bank that is not announced, a bank that is
// announced twice, two digests of one bank, a size that does not fit its hash, and bytes that are
// not a whole event. Zeros after the last event are refused too. The kernel's file has none, but a
// copy of the memory in which firmware keeps the log does; read as events, they would be events of
// PCR 0.
func Parse(data []byte) (*Log, error) {
	switch {
	case len(data) == 0:
		return nil, errors.New("the event log is empty: firmware has not given one to the system")
	case len(data) > MaxSize:
		return nil, fmt.Errorf("the event log has %d bytes, at most %d are allowed", len(data), MaxSize)
	}
	l := &Log{}
	r := &reader{b: data}
	if err := l.readHeader(r); err != nil {
		return nil, fmt.Errorf("the event log's header: %w", err)
	}
	for len(r.b) > 0 {
		number := len(l.Events) + 1
		if number > MaxEvents {
			return nil, fmt.Errorf("the event log has more than %d events", MaxEvents)
		}
		at := len(data) - len(r.b)
		e, err := l.readEvent(r)
		if err != nil {
			return nil, fmt.Errorf("the event log's event %d, at byte %d: %w", number, at, err)
		}
		e.Number = number
		l.Events = append(l.Events, e)
	}
	l.locality, l.localityErr = l.findLocality()
	return l, nil
}

// How the header (TCG_EfiSpecIdEvent) begins in the crypto-agile form, and in any form. A log in
// the SHA-1 form has another header or none.
const (
	agileSignature = "Spec ID Event03\x00"
	anySignature   = "Spec ID Event"
)

// readHeader reads the header of the crypto-agile form. If there is none, it reads nothing, and the
// log has the SHA-1 form.
func (l *Log) readHeader(r *reader) error {
	l.sha1Form = true
	first := &reader{b: r.b}
	e := l.readSHA1Event(first)
	if first.err != nil || e.Type != evNoAction || !bytes.HasPrefix(e.Data, []byte(anySignature)) {
		return l.announce(bankOf(algSHA1, 20))
	}
	switch {
	case bytes.HasPrefix(e.Data, []byte(agileSignature)):
	case bytes.HasPrefix(e.Data, []byte("Spec ID Event00")), bytes.HasPrefix(e.Data, []byte("Spec ID Event02")):
		return l.announce(bankOf(algSHA1, 20))
	default:
		return errors.New("a form of logs that is not known: want Spec ID Event03")
	}
	l.sha1Form = false
	r.b = first.b
	return l.readSpecID(&reader{b: e.Data})
}

// readSpecID reads a TCG_EfiSpecIdEvent (profile, 10.4.5.1): the list of banks.
func (l *Log) readSpecID(r *reader) error {
	r.take(uint64(len(agileSignature)))
	r.u32() // platformClass
	r.u8()  // specVersionMinor
	if major := r.u8(); r.err == nil && major != 2 {
		return fmt.Errorf("version %d of the form: want 2", major)
	}
	r.u8() // specErrata
	r.u8() // uintnSize
	n := r.u32()
	if r.err == nil && (n == 0 || n > maxBanks) {
		return fmt.Errorf("%d hash algorithms: want 1 to %d", n, maxBanks)
	}
	for range n {
		alg, size := r.u16(), r.u16()
		if r.err != nil {
			break
		}
		if err := l.announce(bankOf(alg, int(size))); err != nil {
			return err
		}
	}
	r.take(uint64(r.u8())) // vendorInfo
	if r.err == nil && len(r.b) > 0 {
		return errors.New("bytes follow its end")
	}
	return r.err
}

// TPM_ALG_ID values of hashes (TCG Algorithm Registry).
const (
	algSHA1   = 0x0004
	algSHA256 = 0x000b
	algSHA384 = 0x000c
	algSHA512 = 0x000d
	algSM3    = 0x0012
)

// bankOf returns the bank of a hash. If the hash is not known here, its digests have the given
// size.
func bankOf(alg uint16, size int) bank {
	switch alg {
	case algSHA1:
		return bank{alg, "sha1", size, crypto.SHA1}
	case algSHA256:
		return bank{alg, "sha256", size, crypto.SHA256}
	case algSHA384:
		return bank{alg, "sha384", size, crypto.SHA384}
	case algSHA512:
		return bank{alg, "sha512", size, crypto.SHA512}
	case algSM3:
		return bank{alg, "sm3_256", size, 0}
	}
	return bank{alg, fmt.Sprintf("0x%04x", alg), size, 0}
}

// announce adds a bank.
func (l *Log) announce(b bank) error {
	if b.hash != 0 && b.size != b.hash.Size() || b.size < 1 || b.size > maxDigest {
		return fmt.Errorf("digests of %d bytes in the bank %s", b.size, b.name)
	}
	if slices.Contains(l.Banks, b.name) {
		return fmt.Errorf("the bank %s is announced twice", b.name)
	}
	l.Banks = append(l.Banks, b.name)
	l.banks = append(l.banks, b)
	return nil
}

// readEvent reads one event.
func (l *Log) readEvent(r *reader) (Event, error) {
	if first := r.b[:min(len(r.b), 32)]; len(bytes.Trim(first, "\x00")) == 0 {
		return Event{}, errors.New("zeros: the log was copied with the empty memory behind it")
	}
	if l.sha1Form {
		return l.readSHA1Event(r), r.err
	}
	e := Event{PCR: r.u32(), Type: r.u32(), log: l}
	n := r.u32()
	if r.err == nil && (n == 0 || uint64(n) > uint64(len(l.banks))) {
		return Event{}, fmt.Errorf("%d digests: want 1 to %d", n, len(l.banks))
	}
	digests := r.b
	var seen [maxBanks]bool
	for range n {
		alg := r.u16()
		i := slices.IndexFunc(l.banks, func(b bank) bool { return b.alg == alg })
		if r.err != nil {
			return Event{}, r.err
		}
		if i < 0 || seen[i] {
			return Event{}, fmt.Errorf("the hash algorithm 0x%04x, which is not announced or comes twice", alg)
		}
		seen[i] = true
		r.take(uint64(l.banks[i].size))
	}
	e.digests = digests[:len(digests)-len(r.b)]
	e.Data = r.take(uint64(r.u32()))
	return e, r.err
}

// readSHA1Event reads a TCG_PCR_EVENT.
func (l *Log) readSHA1Event(r *reader) Event {
	e := Event{PCR: r.u32(), Type: r.u32(), digests: r.take(20), log: l}
	e.Data = r.take(uint64(r.u32()))
	return e
}

// Digest returns the event's digest in a bank, or nil if it has none. The digest is a slice of what
// Parse was given.
func (e *Event) Digest(bank string) []byte {
	if e.log == nil {
		return nil
	}
	if e.log.sha1Form {
		if bank != "sha1" {
			return nil
		}
		return e.digests
	}
	r := &reader{b: e.digests}
	for len(r.b) > 0 {
		alg := r.u16()
		for _, b := range e.log.banks {
			if b.alg != alg {
				continue
			}
			if d := r.take(uint64(b.size)); b.name == bank {
				return d
			}
		}
	}
	return nil
}

// localitySignature begins the event that states the locality at which the TPM was started
// (profile, 10.4.5.3). Two bytes follow it: zero and the locality.
const localitySignature = "StartupLocality"

// StartupLocality returns the locality at which the TPM was started, as the log states it, or 0 if
// the log does not state it. PCR 0 begins with this value. The log must state it at most once,
// before any event that extends PCR 0, and it must be 0, 3 or 4. Otherwise StartupLocality returns
// an error, and PCR 0 does not replay.
func (l *Log) StartupLocality() (uint8, error) { return l.locality, l.localityErr }

func (l *Log) findLocality() (locality uint8, err error) {
	said, extended := false, false
	for i := range l.Events {
		e := &l.Events[i]
		if e.PCR != 0 {
			continue
		}
		if e.Type != evNoAction {
			extended = true
			continue
		}
		if !bytes.HasPrefix(e.Data, []byte(localitySignature)) {
			continue
		}
		if said {
			return 0, errors.New("the log states the startup locality twice")
		}
		if extended {
			return 0, errors.New("the log states the startup locality behind an event of PCR 0")
		}
		const size = len(localitySignature) + 2
		if len(e.Data) != size || e.Data[size-2] != 0 {
			return 0, errors.New("the log states the startup locality in a form that is not known")
		}
		said, locality = true, e.Data[size-1]
		if locality != 0 && locality != 3 && locality != 4 {
			return 0, fmt.Errorf("the log states the startup locality %d: want 0, 3 or 4", locality)
		}
	}
	return locality, nil
}
