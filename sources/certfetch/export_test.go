package certfetch

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// Public is what decides on addresses.
func Public(a netip.Addr) bool { return public(a) }

// Hurry makes a Fetcher impatient.
func (f *Fetcher) Hurry(timeout, retryPause time.Duration) {
	f.timeout, f.retryPause = timeout, retryPause
}

// Patience sets how long one waits who has something old.
func (f *Fetcher) Patience(d time.Duration) { f.patience = d }

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
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		f.fail(name{Issuer, "http://pki.example.org/" + strconv.Itoa(i)}, ErrNotFound)
	}
}

// FillObjects has it keep objects that are unlike any others.
func (f *Fetcher) FillObjects(kind Kind, proven bool, n, size int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, series := f.now(), rand.Text()
	for i := range n {
		f.keep(name{kind, fmt.Sprintf("http://pki.example.org/%s.%d", series, i)},
			&kept{body: make([]byte, size), fetched: now, until: now.Add(DefaultAge), parsed: true, proven: proven})
	}
}

// SampleRecords are records without their digest.
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
		all = append(all, value[sha256.Size:])
	}
	return all
}

// CheckRecord takes content, with its digest before it, through all that reads a
// cache file, and says what is wrong.
func CheckRecord(content []byte) error {
	sum := sha256.Sum256(content)
	value := append(sum[:], content...)
	for _, key := range [][]byte{nil, []byte("o"), make([]byte, 1+sha256.Size)} {
		if _, err := decodeRecord(key, value); err == nil {
			return errors.New("it is kept by a key that is none")
		}
	}
	var guess record
	if len(content) >= lengthSize {
		n := binary.BigEndian.Uint32(content)
		if rest := content[lengthSize:]; int64(n) <= int64(len(rest)) {
			_ = json.Unmarshal(rest[:n], &guess.head)
		}
	}
	for _, prefix := range []string{objectKey, failureKey} {
		key := keyOf(prefix, guess.name())
		r, err := decodeRecord(key, value)
		if err != nil {
			continue
		}
		again, err := r.encode()
		if err != nil {
			return err
		}
		if back, err := decodeRecord(key, again); err != nil || back.name() != r.name() ||
			!back.Until.Equal(r.Until) || !bytes.Equal(back.body, r.body) || back.Times != r.Times {
			return fmt.Errorf("%+v becomes %+v: %w", r, back, err)
		}
		if r.Until.Sub(r.Fetched) > maxAge || len(r.body) > 4<<20 || len(r.URL) > maxURL {
			return fmt.Errorf("out of bounds: %+v", r)
		}
		f, err := New(Config{Now: func() time.Time { return r.Fetched }})
		if err != nil {
			return err
		}
		f.remember(r)
		o, kept, err := f.Cached(r.name().kind, r.name().url, func(body []byte) (any, time.Time, error) {
			return len(body), time.Time{}, nil
		})
		if (o != nil) != (kept && err == nil) || o != nil && len(o.Body) == 0 {
			return fmt.Errorf("%+v is %+v, %v, %w", r, o, kept, err)
		}
	}
	return nil
}

// Unwritten returns the number of names that wait to be written.
func (f *Fetcher) Unwritten() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.changed)
}
