package list

import (
	"errors"
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// Signing says whose signature a list needs. Then whoever controls the origin can neither forge a
// list, nor replay, freeze or swap one.
type Signing struct {
	// KeyPath is a file with one or more public keys (package signature), any of which may sign. It
	// is read again at each Load.
	KeyPath string
	// Name is the name that the list must have in its header. A signed list also needs a serial and
	// an expiry.
	Name string
}

// readKeys reads the public keys. A list that none of them has signed is dropped at once, together
// with its serial, and a list in the cache does not count either: a key is removed from the file if
// it was stolen, and the thief may have signed any list with any serial.
func (l *List[T]) readKeys() error {
	s := l.cfg.Signing
	if s == nil {
		return nil
	}
	pem, err := smallfile.Read(s.KeyPath, signature.MaxPublicKeys)
	if err != nil {
		return fmt.Errorf("read the public key: %w", err)
	}
	keys, err := signature.ParsePublicKeys(pem)
	if err != nil {
		return fmt.Errorf("the public key %q: %w", s.KeyPath, err)
	}
	l.keys = keys
	if st := l.state.Load(); st != nil && !keys.Has(st.key) {
		l.state.Store(nil)
		l.loadFault = fmt.Sprintf("the list was dropped: the key that signed it is no longer in %q", s.KeyPath)
	}
	return nil
}

// verify returns the ID of the key that has signed a list; zero if no signature is needed.
func (l *List[T]) verify(data, sig []byte) (signature.ID, error) {
	if l.cfg.Signing == nil {
		return signature.ID{}, nil
	}
	id, err := l.keys.Verify(data, sig)
	if err != nil {
		return signature.ID{}, fmt.Errorf("the list's signature: %w", err)
	}
	return id, nil
}

// signedHeader returns an error if lists must be signed and the header of a signed list does not
// allow its use.
func (l *List[T]) signedHeader(h Header) error {
	if l.cfg.Signing == nil {
		return nil
	}
	return l.cfg.Signing.Check(h)
}

// Check returns an error if the header of a signed list does not allow its use. A list without a
// serial, an expiry and a name could be replayed, frozen, or swapped for another list signed by the
// same key.
func (s *Signing) Check(h Header) error {
	switch {
	case !h.HasSerial || h.Expires.IsZero():
		return errors.New("a signed list needs serial and expires, to prevent replays: publish it with both")
	case h.Name != s.Name:
		return fmt.Errorf("the signed list is %.80q, not %q: its field list must be the configured list_id",
			h.Name, s.Name)
	}
	return nil
}

// lastKey returns the ID of the last key in the file, which is the newest; zero if lists are not
// signed.
func (l *List[T]) lastKey() signature.ID {
	if len(l.keys) == 0 {
		return signature.ID{}
	}
	return l.keys[len(l.keys)-1].ID()
}
