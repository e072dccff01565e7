package attestor

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
)

// plain reads a message that is written as agents write it: the members in the
// order of their declaration, without white space and without escapes. That is
// most of what arrives, and takes a fraction of the time. What is written in any
// other way, or is wrong in any way, is not plain, and decoder has the word: a
// message that plain reads, decoder reads as the same one.
type plain struct {
	rest []byte
	no   bool // it is not plain
}

// plainPayload returns the payload that msg is, or nil where it is not plain.
func plainPayload(msg []byte) *payload {
	r, p := plain{rest: msg}, new(payload)
	r.want(`{"EK":`)
	p.EK = r.blob(maxEKSize)
	r.want(`,"AK":{"Public":`)
	p.AK.Public = r.blob(maxAKFieldSize)
	r.skip(`,"UseTCSDActivationFormat":false`) // of the protocol's first version
	r.want(`,"CreateData":`)
	p.AK.CreateData = r.blob(maxAKFieldSize)
	r.want(`,"CreateAttestation":`)
	p.AK.CreateAttestation = r.blob(maxAKFieldSize)
	r.want(`,"CreateSignature":`)
	p.AK.CreateSignature = r.blob(maxAKFieldSize)
	r.want(`}`)
	if r.skip(`,"EKChain":[`) {
		p.EKChain = append(p.EKChain, r.blob(maxCertificateSize))
		for len(p.EKChain) < maxChain && r.skip(`,`) {
			p.EKChain = append(p.EKChain, r.blob(maxCertificateSize))
		}
		r.want(`]`)
	}
	if r.skip(`,"EKPublic":`) {
		p.EKPublic = r.blob(maxEKPublicSize)
	}
	if r.want(`}`); !r.whole() {
		return nil
	}
	return p
}

// plainResponse returns the secret in the response that msg is, or nil where it
// is not plain.
func plainResponse(msg []byte) []byte {
	r := plain{rest: msg}
	r.want(`{"Secret":`)
	secret := r.blob(maxSecretSize)
	if r.want(`}`); !r.whole() {
		return nil
	}
	return secret
}

// whole reports whether the message was plain to its last byte.
func (r *plain) whole() bool { return !r.no && len(r.rest) == 0 }

// want reads text.
func (r *plain) want(text string) {
	if !r.skip(text) {
		r.no = true
	}
}

// skip reads text if it is what follows.
func (r *plain) skip(text string) bool {
	if r.no || len(r.rest) < len(text) || string(r.rest[:len(text)]) != text {
		return false
	}
	r.rest = r.rest[len(text):]
	return true
}

// blob reads a string of base64 as decoder.blob does.
func (r *plain) blob(limit int) []byte {
	if r.want(`"`); r.no {
		return nil
	}
	end := bytes.IndexByte(r.rest, '"')
	if end <= 0 || end > strictBase64.EncodedLen(limit) {
		r.no = true
		return nil
	}
	s := r.rest[:end]
	r.rest = r.rest[end+1:]
	b := make([]byte, strictBase64.DecodedLen(end))
	n, err := strictBase64.Decode(b, s)
	// The decoder reads over line ends, which stand in no string of JSON: the
	// length tells them. Nothing else that it takes needs an escape.
	if err != nil || n > limit || strictBase64.EncodedLen(n) != end {
		r.no = true
		return nil
	}
	return b[:n]
}

// plainPEM returns the PEM block with which text begins, and what follows it, as
// pem.Decode does, where the block is one of the two that an EK has and is written
// as pem.Encode writes it. The last line of text may have no end.
func plainPEM(text []byte) (block *pem.Block, next []byte, ok bool) {
	for _, typ := range [...]string{pemPublicKey, pemCertificate} {
		rest, ok := bytes.CutPrefix(text, []byte("-----BEGIN "+typ+"-----\n"))
		if !ok {
			continue
		}
		body, rest, ok := bytes.Cut(rest, []byte("-----END "+typ+"-----"))
		if !ok || len(rest) > 0 && rest[0] != '\n' {
			break
		}
		der, ok := plainLines(body)
		return &pem.Block{Type: typ, Bytes: der}, rest[min(1, len(rest)):], ok
	}
	return nil, nil, false
}

// pemLine is how many characters a line of PEM has (RFC 7468, 2).
const pemLine = 64

// plainLines returns what is encoded in lines of base64, which all but the last
// one are full.
func plainLines(body []byte) ([]byte, bool) {
	b := make([]byte, 0, base64.StdEncoding.DecodedLen(len(body)))
	for len(body) > 0 {
		n := min(len(body)-1, pemLine)
		if body[n] != '\n' {
			return nil, false
		}
		was := len(b)
		var err error
		b, err = base64.StdEncoding.AppendDecode(b, body[:n])
		// It reads over line ends of another kind: the length tells them.
		if err != nil || base64.StdEncoding.EncodedLen(len(b)-was) != n {
			return nil, false
		}
		body = body[n+1:]
		if len(body) > 0 && len(b)-was != pemLine/4*3 { // what is padded is the end
			return nil, false
		}
	}
	return b, true
}
