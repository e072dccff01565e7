package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A record is an object or a failure in the cache file, as JSON. Anybody who may write the file may
// write a record, which is why Parse has the last word.
type record struct {
	name name // stored in the key

	// Fetched is when the object was fetched, or when the failure happened.
	Fetched time.Time `json:"fetched"`
	Until   time.Time `json:"until"`

	// Of an object.
	Body   []byte `json:"body,omitempty"`
	Proven bool   `json:"proven,omitempty"`

	// Of a failure. Its text is stored as bytes, since it may be any bytes.
	Problem  []byte `json:"problem,omitempty"`
	NotFound bool   `json:"notFound,omitempty"`
	Times    int    `json:"times,omitempty"`
}

// maxRecord is the maximum length of a record in bytes: that of the longest body, as JSON, and of
// everything else.
const maxRecord = 6 << 20

func objectRecord(n name, k *kept) record {
	return record{name: n, Fetched: k.fetched.UTC(), Until: k.until.UTC(), Body: k.body, Proven: k.proven}
}

func failureRecord(n name, fl *failure) record {
	return record{
		name: n, Fetched: fl.at.UTC(), Until: fl.until.UTC(),
		Problem: []byte(fl.problem), NotFound: fl.notFound, Times: fl.times,
	}
}

// An object and a failure with the same name are both kept: their keys begin differently.
const (
	objectKey  = "o"
	failureKey = "f"
)

// key returns the key of the record. A kind has no zero byte in it.
func (r record) key() []byte {
	prefix := objectKey
	if len(r.Problem) > 0 {
		prefix = failureKey
	}
	return []byte(prefix + string(r.name.kind) + "\x00" + r.name.url)
}

func (r record) encode() ([]byte, error) {
	value, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write what was fetched: %w", err)
	}
	return value, nil
}

// decodeRecord reads a record and copies its parts. It returns only records that this package could
// have written, within its limits.
func decodeRecord(key, value []byte) (record, error) {
	if len(value) > maxRecord {
		return record{}, errors.New("it is too long")
	}
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return record{}, err
	}
	kind, url, _ := strings.Cut(string(key[min(1, len(key)):]), "\x00")
	r.name = name{Kind(kind), url}
	return r, r.check(string(key))
}

// check returns an error if this package could not have written the record.
func (r record) check(key string) error {
	size, failed := int64(len(r.Body)), strings.HasPrefix(key, failureKey)
	switch {
	case key != string(r.key()):
		return errors.New("it is neither an object nor a failure")
	case !r.name.kind.valid() || len(r.name.url) > maxURL:
		return errors.New("it is of no kind, or its URL is too long")
	case r.Until.Before(r.Fetched) || r.Until.Sub(r.Fetched) > maxAge:
		return errors.New("its times are none")
	case !failed && (size == 0 || size > maxBody[r.name.kind.base()]):
		return errors.New("its body is too long, or empty")
	case failed && (size > 0 || r.Until.Sub(r.Fetched) > maxFailureAge || r.Times < 1 || r.Times > 100):
		return errors.New("it is no failure")
	}
	return nil
}
