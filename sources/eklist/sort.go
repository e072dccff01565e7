package eklist

import (
	"bytes"
	"encoding/binary"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// sortHashes sorts keys and, along with them, numbers that belong to them, in
// place: by one byte after the other from the first on, and what is left of
// small groups by insertion. Its time is proportional to the number of keys,
// whatever they are: each of the 32 bytes is looked at once at most, in groups
// that have more than a quarter as many keys as a byte has values.
func sortHashes(keys []sources.EKHash, numbers []uint32) { sortFrom(keys, numbers, 0) }

const smallGroup = 64

func sortFrom(keys []sources.EKHash, numbers []uint32, at int) {
	if len(keys) <= smallGroup || at == len(sources.EKHash{}) {
		insertionSort(keys, numbers)
		return
	}
	// next[v] is where the next key with the byte v goes, end[v] is where its
	// group ends.
	var next, end [256]int
	for i := range keys {
		end[keys[i][at]]++
	}
	sum := 0
	for v := range end {
		next[v] = sum
		sum += end[v]
		end[v] = sum
	}
	for v := range next {
		for next[v] < end[v] {
			i := next[v]
			key, number := keys[i], numbers[i]
			for to := int(key[at]); to != v; to = int(key[at]) {
				j := next[to]
				next[to]++
				key, keys[j] = keys[j], key
				number, numbers[j] = numbers[j], number
			}
			keys[i], numbers[i] = key, number
			next[v]++
		}
	}
	begin := 0
	for _, e := range &end {
		if e-begin > 1 {
			sortFrom(keys[begin:e], numbers[begin:e], at+1)
		}
		begin = e
	}
}

func insertionSort(keys []sources.EKHash, numbers []uint32) {
	for i := 1; i < len(keys); i++ {
		if !less(&keys[i], &keys[i-1]) {
			continue
		}
		key, number := keys[i], numbers[i]
		j := i
		for ; j > 0 && less(&key, &keys[j-1]); j-- {
			keys[j], numbers[j] = keys[j-1], numbers[j-1]
		}
		keys[j], numbers[j] = key, number
	}
}

// less reports whether a sorts before b.
func less(a, b *sources.EKHash) bool {
	if x, y := prefix(a), prefix(b); x != y {
		return x < y
	}
	return bytes.Compare(a[8:], b[8:]) < 0
}

// prefix returns the first eight bytes as a number that sorts as they do.
func prefix(h *sources.EKHash) uint64 { return binary.BigEndian.Uint64(h[:8]) }
