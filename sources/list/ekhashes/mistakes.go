package ekhashes

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// ParseHash reads a hash as Parse does. If the text is not a hash, the error says what it looks
// like.
func ParseHash(text []byte) (sources.EKHash, error) {
	var hash sources.EKHash
	if hash.UnmarshalText(text) != nil {
		problem, _ := notHash(text)
		return sources.EKHash{}, errors.New(problem)
	}
	return hash, nil
}

// maxRecognised is the length of the part of a text that is examined to recognise it.
const maxRecognised = 512

// notHash describes a text found instead of a hash: what it looks like, and what to write. whole is
// true if the whole file is something other than a list, so that its other lines need not be
// reported.
func notHash(text []byte) (problem string, whole bool) {
	s := text[:min(len(text), maxRecognised)]
	switch {
	case bytes.HasPrefix(s, []byte("-----BEGIN")):
		return "PEM, not a list of EK hashes: write the hash that tpm-attestor ek shows for it", true
	case bytes.HasPrefix(s, []byte("<")):
		return "HTML or XML, not a list of EK hashes: it begins with " + list.Quoted(s), true
	case bytes.HasPrefix(s, []byte("[")):
		return `a JSON array, not a list of EK hashes: write {"keys": […]}`, true
	}
	if before, after, ok := around(s); ok {
		return withoutThese(before, after), false
	}
	bare := bytes.Map(func(r rune) rune {
		if strings.ContainsRune(":-. ", r) {
			return -1
		}
		return r
	}, s)
	var hash sources.EKHash
	if hash.UnmarshalText(bare) == nil {
		return list.Quoted(text) + " is a hash with something between its digits: write the 64 hex digits alone", false
	}
	if hash, ok := fromBase64(s); ok {
		return fmt.Sprintf("%s is base64: write the hash in hex, %v", list.Quoted(text), hash), false
	}
	for length, name := range map[int]string{40: "SHA-1", 96: "SHA-384", 128: "SHA-512"} {
		if len(text) == length && allHex(s) {
			return fmt.Sprintf("%s has %d hex digits, as many as a %s: an EK hash is a SHA-256, of 64",
				list.Quoted(text), length, name), false
		}
	}
	if err := hash.UnmarshalText(text); err != nil {
		problem = err.Error() + ": "
	}
	return problem + list.Quoted(text), false
}

// notJSON describes a list that does not begin with a brace.
func notJSON(begin []byte) error {
	problem, whole := notHash(bytes.TrimSpace(begin[:min(len(begin), list.MaxQuoted)]))
	switch {
	case len(begin) == 0:
		problem = "it is empty"
	case !whole:
		problem = "it begins with " + list.Quoted(begin)
	}
	return &list.FormatError{Place: "byte 0", Problem: "not a JSON list, which begins with {: " + problem, Line: 1}
}

// around finds a hash in a text and returns what is before and after it.
func around(s []byte) (before, after []byte, ok bool) {
	const digits = 2 * len(sources.EKHash{})
	run := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && isHex(s[i]) {
			run++
			continue
		}
		if run == digits && run < len(s) {
			return s[:i-digits], s[i:], true
		}
		run = 0
	}
	return nil, nil, false
}

func withoutThese(before, after []byte) string {
	const write = ": write the 64 hex digits alone"
	switch {
	case string(before) == mark:
		return "the hash has a byte order mark in front of it, as if lists had been joined: remove it"
	case len(after) == 0:
		return "the hash has " + list.Quoted(before) + " in front of it" + write
	case len(before) == 0:
		return "the hash has " + list.Quoted(after) + " behind it" + write
	}
	return fmt.Sprintf("the hash stands between %s and %s%s", list.Quoted(before), list.Quoted(after), write)
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func allHex(s []byte) bool {
	for _, c := range s {
		if !isHex(c) {
			return false
		}
	}
	return true
}

// fromBase64 reads a hash in base64, of either alphabet, padded or not.
func fromBase64(s []byte) (sources.EKHash, bool) {
	if len(s) > base64.StdEncoding.EncodedLen(len(sources.EKHash{})) || !utf8.Valid(s) {
		return sources.EKHash{}, false
	}
	text := strings.TrimRight(string(s), "=")
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if raw, err := encoding.DecodeString(text); err == nil && len(raw) == len(sources.EKHash{}) {
			return sources.EKHash(raw), true
		}
	}
	return sources.EKHash{}, false
}
