// Package keydir is the directory in which the agent's KeyManager keeps a file for each key. The file holds
// random bytes, from which the TPM derives the key, and the TPM's name of the key. Without that TPM, the files
// are of no use: another TPM derives other keys from the same bytes. A program that may open the TPM still needs
// the files to use the keys.
//
// Each key has an ID, chosen by SPIRE's agent. Its file is replaced as a whole. The KeyManager writes the files,
// and the node attestor, another process, reads them. A directory belongs to one agent.
package keydir

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The limits of what a directory holds.
const (
	// MaxSlots is the largest number of keys in a directory. SPIRE's agent has two.
	MaxSlots = 16
	// MaxID is the length of the longest ID, in bytes.
	MaxID = 64
	// UniqueSize is the number of random bytes from which a TPM derives a key.
	UniqueSize = 32

	maxFile    = 4 << 10 // bytes
	maxEntries = 1024    // of the directory, keys or not
	maxSerial  = 1 << 53 // every JSON reader reads integers up to this exactly
	nameSize   = 2 + sha256.Size
	version    = 1
)

// nameAlgSHA256 is TPM_ALG_SHA256: the first two bytes of the name of a key whose nameAlg is SHA-256 (TPM 2.0
// library, part 1, 16, and part 2, 6.3).
var nameAlgSHA256 = []byte{0x00, 0x0B}

// A Slot is what a file says of a key.
type Slot struct {
	// ID is SPIRE's name for the key: 1 to MaxID bytes of UTF-8.
	ID string
	// Serial is 1 to 2^53 and orders the keys of a directory: the newest key has the highest serial, and
	// no two keys have the same.
	Serial uint64
	// Unique are the random bytes from which the TPM derives the key.
	Unique [UniqueSize]byte
	// Name is the TPM's name of the key, with the nameAlg SHA-256. If a TPM derives a key with another name from
	// Unique, it is not the TPM that made this key.
	Name []byte
}

// CheckID returns why a key cannot have this ID, or nil.
func CheckID(id string) error {
	switch {
	case id == "":
		return errors.New("the key ID is empty")
	case len(id) > MaxID:
		return fmt.Errorf("the key ID has %d bytes, at most %d are possible", len(id), MaxID)
	case !utf8.ValidString(id):
		return errors.New("the key ID is not UTF-8")
	}
	return nil
}

// file is the JSON of a slot.
type file struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Serial  uint64 `json:"serial"`
	Unique  string `json:"unique"`
	Name    string `json:"name"`
}

// Parse reads the content of a slot's file. It is an error if the content is cut off, or has a member that this
// version does not know.
func Parse(b []byte) (*Slot, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("%d bytes, at most %d are possible", len(b), maxFile)
	}
	var f file
	if err := json.Unmarshal(b, &f, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("not the JSON of a key: %w", err)
	}
	if f.Version != version {
		return nil, fmt.Errorf("the version %d, and this agent knows the version %d", f.Version, version)
	}
	return f.slot()
}

func (f *file) slot() (*Slot, error) {
	s := &Slot{ID: f.ID, Serial: f.Serial}
	if err := CheckID(f.ID); err != nil {
		return nil, err
	}
	if f.Serial == 0 || f.Serial > maxSerial {
		return nil, fmt.Errorf("the serial %d: want 1 to %d", f.Serial, uint64(maxSerial))
	}
	unique, err := base64.StdEncoding.Strict().DecodeString(f.Unique)
	if err != nil || copy(s.Unique[:], unique) != UniqueSize || len(unique) != UniqueSize {
		return nil, fmt.Errorf("unique is not the base64 of %d bytes", UniqueSize)
	}
	s.Name, err = base64.StdEncoding.Strict().DecodeString(f.Name)
	if err != nil || len(s.Name) != nameSize || !bytes.HasPrefix(s.Name, nameAlgSHA256) {
		return nil, errors.New("name is not the base64 of a TPM's name by SHA-256")
	}
	return s, nil
}

// format returns the content of a slot's file.
func (s *Slot) format() ([]byte, error) {
	b, err := json.Marshal(&file{
		Version: version, ID: s.ID, Serial: s.Serial,
		Unique: base64.StdEncoding.EncodeToString(s.Unique[:]),
		Name:   base64.StdEncoding.EncodeToString(s.Name),
	}, jsontext.WithIndent("  "))
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	if _, err := Parse(b); err != nil {
		return nil, fmt.Errorf("a key that could not be read again: %w", err)
	}
	return b, nil
}

const suffix = ".json"

// fileName returns the name of a key's file. No two IDs have the same file name, and no file name leads out of
// the directory: a byte other than a letter, a digit, "-" and "_" is written as % and two hex digits.
func fileName(id string) string {
	var name strings.Builder
	for _, b := range []byte(id) {
		switch {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_':
			name.WriteByte(b)
		default:
			fmt.Fprintf(&name, "%%%02X", b)
		}
	}
	return name.String() + suffix
}
