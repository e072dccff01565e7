package hashdir

// hashLen is the length of an EK hash: SHA-256 in hex digits.
const hashLen = 64

// entryNames returns the two names, relative to the directory, under which an
// EK hash is an entry: in its shard, and flat. They are made of nothing but hex
// digits and the one separator behind the shard. ok is false, and the names
// are empty, for everything that is not 64 lower-case hex digits.
func entryNames(hash string) (names [2]string, ok bool) {
	if len(hash) != hashLen || !isLowerHex(hash) {
		return [2]string{}, false
	}
	sharded := [3 + hashLen]byte{hash[0], hash[1], '/'}
	copy(sharded[3:], hash)
	return [2]string{string(sharded[:]), hash}, true
}

// isLowerHex reports whether s has no byte but 0 to 9 and a to f.
func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
