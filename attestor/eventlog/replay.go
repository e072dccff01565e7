package eventlog

import (
	"bytes"
	"fmt"
	"hash"
	"slices"
)

// Replay returns the value that the log's events give each PCR in a bank. It leaves out PCRs
// without events, and PCR 0 if StartupLocality returns an error. It returns nil if the log cannot
// be read for that bank.
func (l *Log) Replay(bank string) map[int][]byte {
	b, err := l.bank(bank)
	if err != nil {
		return nil
	}
	values := make(map[int][]byte)
	for i, c := range l.replay(b) {
		if c.events > 0 && (i != 0 || l.localityErr == nil) {
			values[i] = c.value
		}
	}
	return values
}

// bank returns a bank in which the log can be replayed: its hash is known here, and each event has
// a digest in it.
func (l *Log) bank(name string) (*bank, error) {
	i := slices.Index(l.Banks, name)
	if i < 0 || l.banks[i].hash == 0 {
		return nil, fmt.Errorf("the event log has no digests of the bank %s", name)
	}
	for j := range l.Events {
		if e := &l.Events[j]; e.Digest(name) == nil {
			return nil, fmt.Errorf("the event log's event %d has no digest of the bank %s", e.Number, name)
		}
	}
	return &l.banks[i], nil
}

// chain is the value of one PCR after its events.
type chain struct {
	value  []byte
	events int // how many extended it
}

// extends reports whether the event claims to extend a PCR. If the claim is false, the PCR does not
// replay.
func (e *Event) extends() bool { return e.Type != evNoAction && e.PCR < pcrCount }

// replay computes all PCRs (TPM 2.0 library specification, part 1, 17.2).
func (l *Log) replay(b *bank) *[pcrCount]chain {
	var pcrs [pcrCount]chain
	for i := range pcrs {
		pcrs[i].value = make([]byte, b.size)
	}
	pcrs[0].value[b.size-1] = l.locality
	h := b.hash.New()
	for i := range l.Events {
		e := &l.Events[i]
		if !e.extends() {
			continue
		}
		c := &pcrs[e.PCR]
		c.value = sum(h, c.value[:0], c.value, e.Digest(b.name))
		c.events++
	}
	return &pcrs
}

// sum appends to dst the hash of the parts.
func sum(h hash.Hash, dst []byte, parts ...[]byte) []byte {
	h.Reset()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(dst)
}

// comesTo reports whether the log replays to the value with which the PCR was quoted. A PCR without
// events must still have the value with which a TPM starts, all zeros.
func (l *Log) comesTo(pcrs *[pcrCount]chain, pcr int, value []byte) bool {
	c := &pcrs[pcr]
	if pcr == 0 && l.localityErr != nil {
		return false
	}
	if c.events == 0 {
		return bytes.Equal(value, make([]byte, len(c.value)))
	}
	return bytes.Equal(value, c.value)
}
