package eklist

import (
	"bytes"
	"hash/maphash"
)

// nameList finds names that are given twice. It holds, for each name, 32 bits of
// a hash above the number of the entry. The hash has a random seed: a list's
// writer cannot choose names that collide.
type nameList struct {
	seed maphash.Seed
	list []uint64
}

// add notes the name of an entry.
func (l *nameList) add(name []byte, entry uint32) {
	if l.list == nil {
		l.seed = maphash.MakeSeed()
	}
	l.list = append(l.list, maphash.Bytes(l.seed, name)>>32<<32|uint64(entry))
}

// duplicate returns, of the entries whose name an earlier one has, the first in
// the order of the list, and that earlier one. nameOf returns the name of an
// entry.
func (l *nameList) duplicate(nameOf func(entry uint32) []byte) (first, second uint32, twice bool) {
	l.sort()
	for rest := l.list; len(rest) > 0; {
		// Those with one hash, sorted by entry: one, but for rare exceptions.
		n := 1
		for n < len(rest) && rest[n]>>32 == rest[0]>>32 {
			n++
		}
		a, b, same := sameName(rest[:n], nameOf)
		if same && (!twice || b < second) {
			first, second, twice = a, b, true
		}
		rest = rest[n:]
	}
	return first, second, twice
}

// sort sorts by hash, and by entry where hashes are equal: by one part of the
// hash after the other from the last on, each time in the order that was.
func (l *nameList) sort() {
	const bits, from = 11, 32
	other := make([]uint64, len(l.list))
	for shift := from; shift < 64; shift += bits {
		var next [1 << bits]int
		part := func(v uint64) uint64 { return v >> shift % (1 << bits) }
		for _, v := range l.list {
			next[part(v)]++
		}
		sum := 0
		for i, n := range &next {
			next[i] = sum
			sum += n
		}
		for _, v := range l.list {
			other[next[part(v)]] = v
			next[part(v)]++
		}
		l.list, other = other, l.list
	}
}

// sameName returns the first two of some entries that have the same name.
func sameName(entries []uint64, nameOf func(entry uint32) []byte) (first, second uint32, same bool) {
	for j := range entries {
		for i := range j {
			first, second = uint32(entries[i]), uint32(entries[j])
			if bytes.Equal(nameOf(first), nameOf(second)) {
				return first, second, true
			}
		}
	}
	return 0, 0, false
}
