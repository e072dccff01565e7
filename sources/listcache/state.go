package listcache

import (
	"bytes"
	"encoding/json"
	"time"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// What a file holds, by bucket.
const (
	stateBucket = "tpm list state" // stateKey; each version of the format has it
	// Eight bytes that count up, and entries, as in entries.go.
	listBucket = "tpm list entries"

	stateKey = "state"
)

// format is the version of all that is in the file. The files of version 1 had no
// checksum as a whole.
const format = "tpm list 2"

// A state is all that a file says about its list. It is written as JSON.
type state struct {
	Of        []byte    `json:"of"`
	Entries   int       `json:"entries"`
	Serial    uint64    `json:"serial"`
	HasSerial bool      `json:"hasSerial"`
	Expires   time.Time `json:"expires"`
	Name      []byte    `json:"name"`

	ETag         []byte    `json:"etag"`
	LastModified []byte    `json:"lastModified"`
	Confirmed    time.Time `json:"confirmed"`
	Key          Key       `json:"key"`
}

// describe returns the state of a file that holds a list.
func (c *Cache) describe(s *eklist.Snapshot, meta Meta) state {
	h := s.Header()
	return state{
		Of: c.of[:], Entries: s.Len(),
		Serial: h.Serial, HasSerial: h.HasSerial, Expires: h.Expires, Name: []byte(h.Name),
		ETag: []byte(meta.ETag), LastModified: []byte(meta.LastModified), Confirmed: meta.Confirmed.UTC(),
		Key: meta.Key,
	}
}

func (st *state) header() eklist.Header {
	return eklist.Header{Serial: st.Serial, HasSerial: st.HasSerial, Expires: st.Expires, Name: string(st.Name)}
}

func (st *state) meta() Meta {
	return Meta{ETag: string(st.ETag), LastModified: string(st.LastModified), Confirmed: st.Confirmed, Key: st.Key}
}

// checkSuccessor reports why a list with a header may not be written over the one
// that is there.
func (st *state) checkSuccessor(next eklist.Header) error {
	if st.HasSerial && (!next.HasSerial || next.Serial < st.Serial) {
		return &AheadError{st.Serial}
	}
	return nil
}

func (st *state) write(tx *bbolt.Tx) error {
	value, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return tx.Bucket([]byte(stateBucket)).Put([]byte(stateKey), value)
}

// readState returns the state of a file. If it has none that this Cache can use, the
// error is a *boltfile.UnusableError.
func (c *Cache) readState(tx *bbolt.Tx) (*state, error) {
	b := tx.Bucket([]byte(stateBucket))
	if b == nil {
		return nil, boltfile.Unusable("has no bucket %q", stateBucket)
	}
	var st state
	if err := json.Unmarshal(b.Get([]byte(stateKey)), &st); err != nil {
		return nil, boltfile.Unusable("does not say what list it holds: %v", err)
	}
	if !bytes.Equal(st.Of, c.of[:]) {
		return nil, boltfile.Unusable("holds the list of another configuration")
	}
	if !c.trusts(st.Key) {
		return nil, boltfile.Unusable("holds a list that none of the public keys has signed")
	}
	return &st, nil
}
