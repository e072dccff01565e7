package certs

import (
	"crypto/sha256"

	lru "github.com/hashicorp/golang-lru/v2"
)

// maxMemo is the maximum number of signatures that a Memo remembers, at about 200 bytes each.
const maxMemo = 4096

// A Memo remembers which keys have signed which certificates, so that signatures are not verified
// again at each step of an attestation. It remembers only what was verified, by the hash of the
// whole certificate and that of the key, and only for keys that are configured or were fetched. The
// least recently used entry is forgotten first, and then verified again. It is safe for concurrent
// use.
type Memo struct{ signed *lru.Cache[issued, struct{}] }

// An issued names a certificate and the key that has signed it.
type issued struct {
	certificate [sha256.Size]byte // the hash of its DER
	key         string
}

// NewMemo returns a Memo that is empty.
func NewMemo() *Memo {
	signed, err := lru.New[issued, struct{}](maxMemo)
	if err != nil { // the size is a constant
		return nil
	}
	return &Memo{signed}
}

// has reports whether the key of s is known to have signed n. m may be nil.
func (m *Memo) has(n *node, s *signer) bool {
	if m == nil {
		return false
	}
	_, ok := m.signed.Get(issued{n.sum, s.keyHash})
	return ok
}

// add remembers that the key of s has signed n. m may be nil.
func (m *Memo) add(n *node, s *signer) {
	if m != nil && s.lasting {
		m.signed.Add(issued{n.sum, s.keyHash}, struct{}{})
	}
}
