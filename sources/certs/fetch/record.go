package fetch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// A record is what the cache file has by a name: the length of a head in four bytes,
// the head as JSON, the body of an object. Whoever may write the file may write a
// record, which is why Parse has the last word.
type record struct {
	head
	body []byte
}

// head is all but the body. Text is kept as bytes, whatever they are.
type head struct {
	Kind []byte `json:"kind"`
	URL  []byte `json:"url"`

	Fetched time.Time `json:"fetched"`
	Until   time.Time `json:"until"`
	Proven  bool      `json:"proven,omitempty"`

	// Of a failure, and then there is no body: Fetched is when it has happened.
	Problem  []byte `json:"problem,omitempty"`
	NotFound bool   `json:"notFound,omitempty"`
	Times    int    `json:"times,omitempty"`
}

const (
	lengthSize = 4
	maxHead    = 16 << 10
)

func (r record) name() name { return name{Kind(r.Kind), string(r.URL)} }

// An object and a failure of one name are both kept: each has a key of its own.
const (
	objectKey  = "o"
	failureKey = "f"
)

// keyOf returns the key of a record.
func keyOf(prefix string, n name) []byte {
	sum := sha256.Sum256([]byte(string(n.kind) + "\x00" + n.url))
	return append([]byte(prefix), sum[:]...)
}

func objectRecord(n name, k *kept) record {
	return record{head{
		Kind: []byte(n.kind), URL: []byte(n.url), Fetched: k.fetched.UTC(), Until: k.until.UTC(), Proven: k.proven,
	}, k.body}
}

func failureRecord(n name, fl *failure) record {
	return record{head: head{
		Kind: []byte(n.kind), URL: []byte(n.url), Fetched: fl.at.Round(0).UTC(), Until: fl.until.Round(0).UTC(),
		Problem: []byte(fl.problem), NotFound: fl.notFound, Times: fl.times,
	}}
}

func (r record) encode() ([]byte, error) {
	text, err := json.Marshal(r.head)
	if err != nil {
		return nil, fmt.Errorf("write what was fetched: %w", err)
	}
	out := make([]byte, 0, lengthSize+len(text)+len(r.body))
	out = binary.BigEndian.AppendUint32(out, uint32(len(text)))
	return append(append(out, text...), r.body...), nil
}

// decodeRecord reads a record, whose parts are copied. What it returns is as this
// package makes it, within its limits.
func decodeRecord(key, value []byte) (record, error) {
	if len(value) < lengthSize {
		return record{}, errors.New("it is cut off")
	}
	n, rest := binary.BigEndian.Uint32(value), value[lengthSize:]
	if n > maxHead || int(n) > len(rest) {
		return record{}, errors.New("its head is cut off")
	}
	var r record
	if err := json.Unmarshal(rest[:n], &r.head); err != nil {
		return record{}, fmt.Errorf("its head: %w", err)
	}
	r.body = bytes.Clone(rest[n:])
	return r, r.check(key)
}

// key returns the key that the record is kept by.
func (r record) key() []byte { return keyOf(r.prefix(), r.name()) }

func (r record) prefix() string {
	if len(r.Problem) > 0 {
		return failureKey
	}
	return objectKey
}

// check returns why a record is not one of this package's.
func (r record) check(key []byte) error {
	prefix := r.prefix()
	kind, size := Kind(r.Kind), int64(len(r.body))
	switch {
	case !bytes.Equal(key, r.key()):
		return errors.New("it is kept by another name")
	case !kind.valid() || len(r.URL) > maxURL:
		return errors.New("it is of no kind, or its URL is too long")
	case r.Until.Before(r.Fetched) || r.Until.Sub(r.Fetched) > maxAge:
		return errors.New("its times are none")
	case prefix == objectKey && (size == 0 || size > maxBody[kind.base()]):
		return errors.New("its body is too long, or empty")
	case prefix == failureKey && (size > 0 || r.Until.Sub(r.Fetched) > maxFailureAge || r.Times < 1 || r.Times > 100):
		return errors.New("it is no failure")
	}
	return nil
}
