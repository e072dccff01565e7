package listcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// What a file holds, by bucket.
const (
	stateBucket = "tpm list state" // formatKey, stateKey
	// The list as it was when the file was written: eight bytes that count up,
	// and entries, as in entries.go.
	listBucket = "tpm list entries"
	// What has changed since, in the same form: a value for each Save.
	changesBucket = "tpm list changes"

	formatKey = "format"
	stateKey  = "state"
)

// format is the value of formatKey: the version of all else in the file.
const format = "1"

// A state is all that a file says about its list. It is written as JSON, and
// behind it the SHA-256 of that.
type state struct {
	Of        []byte    `json:"of"`
	Digest    []byte    `json:"digest"` // changes included
	Entries   int       `json:"entries"`
	Serial    uint64    `json:"serial"`
	HasSerial bool      `json:"hasSerial"`
	Expires   time.Time `json:"expires"`
	Name      []byte    `json:"name"`

	ETag         []byte    `json:"etag"`
	LastModified []byte    `json:"lastModified"`
	Confirmed    time.Time `json:"confirmed"`
	Key          Key       `json:"key"`

	// Bytes of the list and of its changes, and how many values those have.
	ListBytes    int64  `json:"listBytes"`
	ChangesBytes int64  `json:"changesBytes"`
	Changes      uint64 `json:"changes"`
}

// describe returns the state of a file that holds a list, but for how it holds it.
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
	b, err := tx.CreateBucketIfNotExists([]byte(stateBucket))
	if err != nil {
		return err
	}
	value, err := json.Marshal(st)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(value)
	if err := b.Put([]byte(formatKey), []byte(format)); err != nil {
		return err
	}
	return b.Put([]byte(stateKey), append(value, sum[:]...))
}

// readState returns the state of a file. Where it has none that this Cache can
// use, the error is a *boltfile.UnusableError; it is boltfile.ErrForeign where
// another program made the file.
func (c *Cache) readState(tx *bbolt.Tx) (*state, error) {
	b := tx.Bucket([]byte(stateBucket))
	if b == nil {
		if isForeign(tx) {
			return nil, boltfile.ErrForeign
		}
		return nil, boltfile.Damaged("it has no bucket %q", stateBucket)
	}
	if there := b.Get([]byte(formatKey)); string(there) != format {
		return nil, &boltfile.UnusableError{Problem: fmt.Sprintf(
			"has the format %.99q, not %q: it is damaged or from another release", there, format)}
	}
	value := b.Get([]byte(stateKey))
	if len(value) < sha256.Size {
		return nil, boltfile.Damaged("its state is cut off")
	}
	value, sum := value[:len(value)-sha256.Size], value[len(value)-sha256.Size:]
	if have := sha256.Sum256(value); !bytes.Equal(have[:], sum) {
		return nil, boltfile.Damaged("its state is not what was written")
	}
	var st state
	if err := json.Unmarshal(value, &st); err != nil {
		return nil, boltfile.Damaged("its state: %v", err)
	}
	if len(st.Digest) != sha256.Size {
		return nil, boltfile.Damaged("its state is not complete")
	}
	if !bytes.Equal(st.Of, c.of[:]) {
		return nil, &boltfile.UnusableError{Problem: "holds the list of another configuration"}
	}
	if !c.trusts(st.Key) {
		return nil, &boltfile.UnusableError{Problem: "holds a list that none of the public keys has signed"}
	}
	return &st, nil
}

// isForeign reports whether a database holds something, and nothing by a name
// that this package uses.
func isForeign(tx *bbolt.Tx) bool {
	n := 0
	c := tx.Cursor()
	for key, _ := c.First(); key != nil; key, _ = c.Next() {
		switch n++; string(key) {
		case stateBucket, listBucket, changesBucket:
			return false
		}
	}
	return n > 0
}
