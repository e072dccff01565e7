package handover

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A request is: the version in a byte; kindOnly or kindAny; 32 bytes with the key's hash, zeros for
// kindAny; the length of the ID in two bytes, big endian; and the ID. A reply is: taken or refused; the
// length of a text in a byte; and the text, which is empty or says why the composer refuses the key.
const (
	version = 1

	kindOnly = 'o'
	kindAny  = 'a'

	taken   = 't'
	refused = 'r'

	headSize  = 2 + sha256.Size + 2
	maxID     = 2048 // SPIFFE-ID, 2.3
	maxReason = 255
)

// writeRequest writes a request in one piece.
func writeRequest(w io.Writer, id string, k Key) error {
	if len(id) == 0 || len(id) > maxID {
		return fmt.Errorf("an ID of %d bytes", len(id))
	}
	b := make([]byte, 0, headSize+len(id))
	kind := byte(kindOnly)
	if k.any {
		kind = kindAny
	}
	b = append(b, version, kind)
	b = append(b, k.spki[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(id))) // at most maxID
	_, err := w.Write(append(b, id...))
	return err
}

// readRequest reads a request. It reads no more than headSize and maxID bytes.
func readRequest(r io.Reader) (id string, k Key, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", Key{}, fmt.Errorf("read the request: %w", err)
	}
	k.spki = [sha256.Size]byte(head[2:])
	switch {
	case head[0] != version:
		return "", Key{}, fmt.Errorf("a request of version %d: want %d", head[0], version)
	case head[1] == kindAny && k.spki == [sha256.Size]byte{}:
		k.any = true
	case head[1] != kindOnly || k.spki == [sha256.Size]byte{}:
		return "", Key{}, errors.New("a request for no key")
	}
	size := binary.BigEndian.Uint16(head[headSize-2:])
	if size == 0 || size > maxID {
		return "", Key{}, fmt.Errorf("an ID of %d bytes: at most %d are allowed", size, maxID)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", Key{}, fmt.Errorf("read the ID: %w", err)
	}
	return string(text), k, nil
}

// writeReply writes the reply to a request: taken if reason is nil, otherwise refused, with the first
// maxReason bytes of the reason.
func writeReply(w io.Writer, reason error) error {
	b := []byte{taken, 0}
	if reason != nil {
		text := reason.Error()
		text = text[:min(len(text), maxReason)]
		b = append([]byte{refused, byte(len(text))}, text...)
	}
	_, err := w.Write(b)
	return err
}

// errRefused is wrapped by the error of readReply if the composer has refused the key.
var errRefused = errors.New("the composer refuses it")

// readReply reads a reply. It returns nil if the composer has taken the key.
func readReply(r io.Reader) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read the reply: %w", err)
	}
	switch {
	case head == [2]byte{taken, 0}:
		return nil
	case head[0] != refused:
		return errors.New("the reply is malformed")
	}
	text := make([]byte, head[1])
	if _, err := io.ReadFull(r, text); err != nil {
		return fmt.Errorf("read the reply: %w", err)
	}
	return fmt.Errorf("%w: %q", errRefused, text)
}
