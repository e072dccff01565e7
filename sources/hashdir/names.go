package hashdir

import (
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// hashLen is the length of an EK hash: SHA-256 in hex digits.
const hashLen = 2 * len(sources.EKHash{})

// entryNames returns the two names, relative to the directory, under which an EK hash is an
// entry: in its shard, and flat. They consist of hex digits and of the separator after the
// shard.
func entryNames(hash sources.EKHash) [2]string { return namesOf(hash.String()) }

// upperNames returns the same names in upper case. ok is false if the hash has no letters, so
// that they do not differ.
func upperNames(hash string) (names [2]string, ok bool) {
	upper := strings.ToUpper(hash)
	return namesOf(upper), upper != hash
}

func namesOf(hash string) [2]string {
	sharded := [3 + hashLen]byte{hash[0], hash[1], '/'}
	copy(sharded[3:], hash)
	return [2]string{string(sharded[:]), hash}
}

// isLowerHex reports whether s consists of 0 to 9 and a to f.
func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// isEntryCase reports whether s consists of hex digits, with all letters in one case.
func isEntryCase(s string) bool {
	return isLowerHex(s) || isLowerHex(strings.ToLower(s)) && s == strings.ToUpper(s)
}

// digits returns how many hex digits there are in s.
func digits(s string) int {
	n := 0
	for i := range len(s) {
		if isLowerHex(strings.ToLower(s[i : i+1])) {
			n++
		}
	}
	return n
}

// doubt says why a name that looks like an entry is not one. It returns an empty string if the name
// does not look like an entry. shard is the folder that the name is in, or empty.
func doubt(shard, name string) string {
	const least = 32 // hex digits, and at least half of the name
	hex := isLowerHex(strings.ToLower(name))
	switch n := digits(name); {
	case n < least || 2*n < len(name):
		return ""
	case hex && len(name) == hashLen && !isEntryCase(name):
		return "has letters of both cases: write all in lower or all in upper case"
	case hex && len(name) == hashLen && shard != name[:2]:
		return "is in the folder of other hashes: move it to " + name[:2] + " or to the directory itself"
	case hex && len(name) == hashLen-2 && shard != "":
		return "lacks the two digits of its folder: name the file by the whole hash"
	case strings.TrimSpace(name) != name:
		return "has a blank or a line end in its name: rename it"
	}
	return "is not named by 64 hex digits: rename it to the hash alone"
}
