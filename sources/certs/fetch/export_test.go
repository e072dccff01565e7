package fetch

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"go.etcd.io/bbolt"
)

// MaxURL is the length of a URL that may be asked for.
const MaxURL = maxURL

// Public is what decides on addresses.
func Public(a netip.Addr) bool { return public(a) }

// Hurry shortens the times of a Fetcher.
func (f *Fetcher) Hurry(timeout, retryPause time.Duration) {
	f.timeout, f.retryPause = timeout, retryPause
}

// Allows is Allowed without a reason.
func (f *Fetcher) Allows(raw string) (canonical string, ok bool) {
	canonical, err := f.Allowed(raw)
	return canonical, err == nil
}

// Stats is what is kept.
type Stats struct {
	Objects, Failures int
	Bytes             int64
}

// Stats counts.
func (f *Fetcher) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Stats{Failures: f.failures.Len()}
	for _, shelf := range f.objects.all() {
		s.Objects += shelf.Len()
		s.Bytes += shelf.bytes
	}
	return s
}

// DefaultAge is how long an object is kept whose Parse says nothing.
const DefaultAge = defaultAge

// Connect makes its connections by another resolver and with other roots.
func (f *Fetcher) Connect(resolver *net.Resolver, roots *x509.CertPool) { f.connect(resolver, roots) }

// Flights returns the number of URLs that are asked for or wait to be.
func (f *Fetcher) Flights() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.flights)
}

// Waiting returns the number of those who wait for a URL.
func (f *Fetcher) Waiting(kind Kind, url string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[name{kind, url}]; fl != nil {
		return fl.waiters
	}
	return 0
}

// Running reports whether Run is at work.
func (f *Fetcher) Running() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

// FillFailures has it remember failures.
func (f *Fetcher) FillFailures(n int) {
	for i := range n {
		_ = f.fail(name{Issuer, "http://pki.example.org/" + strconv.Itoa(i)}, ErrNotFound)
	}
}

// FillObjects has it keep objects that are unlike any others.
func (f *Fetcher) FillObjects(kind Kind, proven bool, n, size int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, series := f.now(), rand.Text()
	for i := range n {
		f.objects.put(name{kind, fmt.Sprintf("http://pki.example.org/%s.%d", series, i)},
			&kept{body: make([]byte, size), fetched: now, until: now.Add(defaultAge), parsed: true, proven: proven})
		f.touch()
	}
}

// SampleRecords are records as they are in the file.
func SampleRecords() (all [][]byte) {
	now := time.Unix(1e9, 0)
	n := name{CRL.Of("\xff"), "http://pki.example.org/a.crl"}
	for _, r := range []record{
		objectRecord(n, &kept{body: []byte("body"), fetched: now, until: now.Add(time.Hour)}),
		failureRecord(n, newFailure(ErrNotFound, nil, now)),
	} {
		value, err := r.encode()
		if err != nil {
			panic(err)
		}
		all = append(all, value)
	}
	return all
}

// CheckRecord takes a record through all that reads a cache file, and says what is
// wrong.
func CheckRecord(value []byte) error {
	for _, key := range [][]byte{nil, []byte("o"), []byte("o\x00"), []byte("xcrl\x00"), make([]byte, 33)} {
		if _, err := decodeRecord(key, value); err == nil {
			return errors.New("it is kept by a key that is none")
		}
	}
	for _, prefix := range []string{objectKey, failureKey} {
		key := []byte(prefix + string(CRL.Of("a")) + "\x00http://pki.example.org/a.crl")
		r, err := decodeRecord(key, value)
		if err != nil {
			continue
		}
		again, err := r.encode()
		if err != nil {
			return err
		}
		if back, err := decodeRecord(key, again); err != nil || back.name != r.name ||
			!back.Until.Equal(r.Until) || !bytes.Equal(back.Body, r.Body) || back.Times != r.Times {
			return fmt.Errorf("%+v becomes %+v: %w", r, back, err)
		}
		if r.Until.Sub(r.Fetched) > maxAge || len(r.Body) > 4<<20 || len(r.name.url) > maxURL {
			return fmt.Errorf("out of bounds: %+v", r)
		}
		f, err := New(Config{Now: func() time.Time { return r.Fetched }})
		if err != nil {
			return err
		}
		f.remember(r)
		o, known, err := f.Cached(r.name.kind, r.name.url, func(body []byte) (any, time.Time, error) {
			return len(body), time.Time{}, nil
		})
		isObject, inTime := prefix == objectKey, r.Until.After(r.Fetched)
		if (o != nil) != isObject || known != inTime || (err != nil) != (inTime && !isObject) || isObject && len(o.Body) == 0 {
			return fmt.Errorf("%+v is %+v, %v, %w", r, o, known, err)
		}
	}
	return nil
}

// AddRecord writes a file anew, with one record more and a checksum that is right.
func AddRecord(ctx context.Context, path string, key, value []byte) error {
	f, err := New(Config{CachePath: path})
	if err != nil {
		return err
	}
	if err := f.Load(ctx); err != nil {
		return err
	}
	return cacheFile(path).Write(ctx, nil, func(db *bbolt.DB) error {
		return errors.Join(f.writeAll(db), db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(recordsBucket)).Put(key, value)
		}))
	})
}

// CheckKept says what is wrong if an answer that is kept, or a failure, is not the same
// after a restart.
func CheckKept(kind Kind, url string, body []byte, wanted time.Time, problem string, failures uint8) error {
	now := time.Unix(1e9, 0).UTC()
	n := name{kind, url}
	var fl *failure
	for i := range int(failures) + 1 {
		fl = newFailure(errors.New(problem), fl, now.Add(time.Duration(i)*time.Minute))
	}
	object := &kept{body: body, fetched: now, until: untilOf(now, wanted).UTC(), proven: failures%2 == 1}
	for _, r := range []record{objectRecord(n, object), failureRecord(n, fl)} {
		value, err := r.encode()
		if err != nil {
			return fmt.Errorf("it cannot be written: %w", err)
		}
		got, err := decodeRecord(r.key(), value)
		if err != nil {
			return fmt.Errorf("it is not read again: %w", err)
		}
		if got.name != n || !bytes.Equal(got.Body, r.Body) || !got.Until.Equal(r.Until) || !got.Fetched.Equal(r.Fetched) ||
			!bytes.Equal(got.Problem, r.Problem) || got.Times != r.Times || got.Proven != r.Proven {
			return fmt.Errorf("%+v comes back as %+v", r, got)
		}
	}
	return nil
}
