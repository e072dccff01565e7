// Package handover tells SPIRE's credential composer "tpm" for which key an agent may get its SVID.
// The node attestor "tpm" knows that key. Both are plugins of one spire-server, in two processes.
//
// The attestor knows which key the agent's TPM has certified, and the composer learns which key
// SPIRE is about to sign. So a [Client] in the attestor hands a [Key] over, a [Listener] in the
// composer puts it into a [Table], and the composer takes it out when SPIRE asks. Everything here
// fails closed: if no key has arrived, there is no SVID.
//
// A hand-over is one connection to a Unix socket with one request and one reply; frame.go has
// their form. Each side checks that the other is a process of its own user and a child of the same
// spire-server.
package handover

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// Lifetime is how long a key serves after it was handed over. SPIRE asks the composer within
	// milliseconds of the attestor's answer.
	Lifetime = time.Minute
	// maxEntries is how many keys a Table holds: enough for a thousand admissions a second during
	// Lifetime, even if SPIRE never asks about any of them. An entry takes some 210 bytes.
	maxEntries = 1 << 16
	// sweepPause is the least time between two removals of expired entries.
	sweepPause = time.Second
)

// guarded is the path of the IDs about which the composer decides, without the last slash.
const guarded = "/spire/agent/tpm"

// Guards reports whether the composer decides about an ID. It decides about the IDs below
// /spire/agent/tpm/ in any trust domain, and about that path itself, which no agent has.
func Guards(id spiffeid.ID) bool {
	return id.Path() == guarded || strings.HasPrefix(id.Path(), guarded+"/")
}

// A Key says for which key an agent may get its SVID. The zero value allows none.
type Key struct {
	any  bool
	spki [sha256.Size]byte
}

// Only returns the Key that allows one public key: spki is the SHA-256 of its SubjectPublicKeyInfo in DER.
func Only(spki [sha256.Size]byte) Key { return Key{spki: spki} }

// Any returns the Key that allows every key. It is for an agent that has certified no key, if svid_key
// is "optional".
func Any() Key { return Key{any: true} }

// The errors of Table.Take.
var (
	ErrNothing = errors.New("no key has been handed over for it in the last minute, " +
		"or it has been used already")
	ErrOtherKey = errors.New("the key that was handed over for it is another one")
)

// A Table holds the keys that have been handed over. The zero value is ready to use. It is safe for
// concurrent use, and its size is bounded.
type Table struct {
	mu      sync.Mutex
	entries map[[sha256.Size]byte]entry // by the hash of the ID
	swept   time.Time                   // when expired entries were last removed
}

type entry struct {
	key Key
	end time.Time // has a monotonic clock reading, so that setting the clock changes nothing
}

// Put puts in the key for an ID, in place of an earlier key for the same ID. It reports false if there is
// no room: it removes no other machine's key, since SPIRE may be about to ask about that machine.
func (t *Table) Put(id string, k Key) bool {
	name, now := sha256.Sum256([]byte(id)), time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries == nil {
		t.entries = map[[sha256.Size]byte]entry{}
	}
	if now.Sub(t.swept) >= sweepPause {
		maps.DeleteFunc(t.entries, func(_ [sha256.Size]byte, e entry) bool { return e.over(now) })
		t.swept = now
	}
	if _, there := t.entries[name]; !there && len(t.entries) >= maxEntries {
		return false
	}
	t.entries[name] = entry{k, now.Add(Lifetime)}
	return true
}

// Take returns nil if the Key for an ID allows the public key whose SubjectPublicKeyInfo in DER has the
// SHA-256 spki. Take then removes the Key, so that it serves once. Otherwise Take returns ErrNothing or
// ErrOtherKey. With ErrOtherKey, the Key stays: if an agent attests twice at once, and SPIRE asks about
// the key of the earlier attestation first, the later attestation still gets its SVID.
func (t *Table) Take(id string, spki [sha256.Size]byte) error {
	name, now := sha256.Sum256([]byte(id)), time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	e, there := t.entries[name]
	switch {
	case !there:
		return ErrNothing
	case e.over(now):
		delete(t.entries, name)
		return ErrNothing
	case !e.key.any && (e.key == Key{} || e.key.spki != spki):
		return ErrOtherKey
	}
	delete(t.entries, name)
	return nil
}

func (e entry) over(now time.Time) bool { return !now.Before(e.end) }

// maxPath is how long the path of a socket may be, in bytes: sockaddr_un has room for 108, of
// which one is a zero (unix(7)).
const maxPath = 107

// CheckPath returns what is wrong with the path of a socket, or nil. The text of the error is written to
// follow the name of a configuration key. CheckPath looks at no file.
func CheckPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("is no absolute path: write one such as \"/run/spire/tpm/svid.sock\"")
	case len(path) > maxPath:
		return fmt.Errorf("is %d bytes long, and the path of a socket has at most %d: choose a shorter one",
			len(path), maxPath)
	case filepath.Clean(path) != path:
		return fmt.Errorf("is not written plainly: write %q", filepath.Clean(path))
	case filepath.Dir(path) == "/":
		return errors.New("is in /: choose a folder of its own, such as that of \"/run/spire/tpm/svid.sock\"")
	}
	return nil
}
