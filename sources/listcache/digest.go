package listcache

import (
	"crypto/sha256"
	"sync"
	"weak"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// A digest tells what a file holds. It begins as the SHA-256 of the list as the
// file was written, and each value of changes makes another one of it: so that it
// takes no look at a whole list to note that a few entries are others.
type digest [sha256.Size]byte

// with returns the digest after a value of changes.
func (d digest) with(changes []byte) digest {
	h := sha256.New()
	h.Write(d[:])
	h.Write(changes)
	return digest(h.Sum(nil))
}

// A memo remembers what the file held after the last Load or Save, and does not
// keep that list alive.
type memo struct {
	mu   sync.Mutex
	list weak.Pointer[eklist.Snapshot]
	file digest
}

// holds reports whether a file with a digest holds a list. It is false as well
// where that is not known.
func (m *memo) holds(file digest, list *eklist.Snapshot) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return list != nil && m.list.Value() == list && m.file == file
}

func (m *memo) put(file digest, list *eklist.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list, m.file = weak.Make(list), file
}
