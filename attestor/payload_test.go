package attestor_test

import (
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// refused fails the test unless the payload is refused, by a short error that contains
// part.
func refused(t *testing.T, v *attestor.Verifier, payload []byte, part string) {
	t.Helper()
	s, err := v.Begin(payload)
	if err == nil {
		t.Fatalf("it is taken, with the EK %x", s.EK().Hash)
	}
	if s != nil {
		t.Error("a session with an error")
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("%v: want %q in it", err, part)
	}
	if len(err.Error()) > 300 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

// members is a payload as a map, to be changed by name.
type members map[string]any

func membersOf(t testing.TB, tpm *attestortest.TPM) members {
	t.Helper()
	var m members
	if err := json.Unmarshal(tpm.Payload(t), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m members) ak() map[string]any {
	ak, ok := m["AK"].(map[string]any)
	if !ok {
		return nil
	}
	return ak
}

func (m members) encode(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A payload is refused if a required field is missing, null, empty, of another type, too
// large or not base64.
func TestPayloadFields(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: attestortest.NewCA(t, "root")})
	spoiled := map[string]any{
		"null":           nil,
		"empty":          "",
		"a number":       7,
		"a bool":         true,
		"an object":      map[string]any{},
		"an array":       []any{"AAAA"},
		"not base64":     "*",
		"base64url":      "__--",
		"no padding":     "AA",
		"bits over":      "AB==",
		"a line end":     "AA\nAA",
		"a space":        "AA AA",
		"too large":      strings.Repeat("AAAA", 11000),
		"something else": "AAAA",
	}
	var v attestor.Verifier
	for _, field := range []string{"EK", "EKPublic"} {
		for name, value := range spoiled {
			m := membersOf(t, tpm)
			m[field] = value
			t.Run(field+" "+name, func(t *testing.T) { refused(t, &v, m.encode(t), field) })
		}
	}
	for _, field := range []string{"Public", "CreateData", "CreateAttestation", "CreateSignature"} {
		for name, value := range spoiled {
			m := membersOf(t, tpm)
			m.ak()[field] = value
			t.Run("AK."+field+" "+name, func(t *testing.T) { refused(t, &v, m.encode(t), "AK.") })
		}
		m := membersOf(t, tpm)
		delete(m.ak(), field)
		t.Run("AK."+field+" missing", func(t *testing.T) { refused(t, &v, m.encode(t), "AK."+field) })
		m = membersOf(t, tpm)
		m.ak()[strings.ToLower(field)] = m.ak()[field]
		delete(m.ak(), field)
		t.Run("AK."+field+" in lower case", func(t *testing.T) { refused(t, &v, m.encode(t), "AK."+field) })
	}
	for _, field := range []string{"EK", "AK"} {
		m := membersOf(t, tpm)
		delete(m, field)
		t.Run(field+" missing", func(t *testing.T) { refused(t, &v, m.encode(t), field) })
	}
	m := membersOf(t, tpm)
	m["AK"] = nil
	t.Run("AK null", func(t *testing.T) { refused(t, &v, m.encode(t), "a JSON null instead of an object") })
}

// The length of a list in a payload is limited, and so is the size of its elements.
func TestPayloadLists(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	cert := encode64(ca.Certificate.Raw)
	repeat := func(n int, s string) []string {
		var all []string
		for range n {
			all = append(all, s)
		}
		return all
	}
	var v attestor.Verifier
	for name, m := range map[string]members{
		"a chain of 17":             {"EKChain": repeat(17, cert)},
		"a chain of null":           {"EKChain": []any{nil}},
		"a null chain":              {"EKChain": nil},
		"a chain of an empty one":   {"EKChain": []string{""}},
		"a chain that is a string":  {"EKChain": cert},
		"a chain of garbage":        {"EKChain": []string{cert, "AAAA"}},
		"a chain of a huge one":     {"EKChain": []string{strings.Repeat("AAAA", 3000)}},
		"a chain of two in one":     {"EKChain": []string{encode64(append(ca.Certificate.Raw, ca.Certificate.Raw...))}},
		"a chain of a huge key":     {"EKChain": []string{encode64(hugeKeyCertificate(t, ca))}},
		"17 abilities":              {"Can": repeat(17, "x")},
		"an ability of 65 bytes":    {"Can": repeat(1, strings.Repeat("x", 65))},
		"abilities in one string":   {"Can": "x"},
		"an ability that is a list": {"Can": []any{[]any{"x"}}},
	} {
		all := membersOf(t, tpm)
		maps.Copy(all, m)
		t.Run(name, func(t *testing.T) { refused(t, &v, all.encode(t), "payload: ") })
	}
	for name, m := range map[string]members{
		"a chain of 16": {"EKChain": repeat(16, cert)},
		"no chain":      {"EKChain": []string{}},
		"16 abilities":  {"Can": repeat(16, strings.Repeat("x", 64))},
	} {
		all := membersOf(t, tpm)
		maps.Copy(all, m)
		if _, err := v.Begin(all.encode(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// hugeKeyCertificate returns a certificate with a key whose signatures take long to check.
func hugeKeyCertificate(t *testing.T, ca *attestortest.CA) []byte {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), 30000)
	return ca.Issue(t, &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}, attestortest.Certificate{})
}

// manyNames returns members with different names.
func manyNames(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"%d":0,`, i)
	}
	return b.String()
}

// A message is refused if it is not one payload, if parsers could read it differently, or
// if it costs more to read than a payload may.
func TestPayloadSyntax(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	good := string(tpm.Payload(t))
	body := good[1:]
	nested := func(open, end string, n int) string {
		return `{"x":` + strings.Repeat(open, n) + `0` + strings.Repeat(end, n) + `,` + body
	}
	var v attestor.Verifier
	for name, msg := range map[string]string{
		"nothing":            "",
		"white space":        "  ",
		"null":               "null",
		"a string":           `"x"`,
		"an array":           "[" + good + "]",
		"two":                good + good,
		"something behind":   good + "\n0",
		"NUL behind":         good + "\x00",
		"too large":          `{"x":"` + strings.Repeat("x", attestor.MaxPayloadSize) + `",` + body,
		"EK twice":           `{"EK":"AAAA",` + body,
		"AK twice":           `{"AK":{},` + body,
		"Public twice":       strings.Replace(good, `"AK":{`, `"AK":{"Public":"AAAA",`, 1),
		"unknown twice":      `{"x":1,"x":1,` + body,
		"unknown twice deep": `{"x":[{"y":1,"y":1}],` + body,
		"escaped EK twice":   `{"\u0045K":"AAAA",` + body,
		"a long name twice":  strings.Repeat(`{"`+strings.Repeat("n", 9000)+`":1,"`, 1) + strings.Repeat("n", 9000) + `":1,` + body,
		"nested arrays":      nested("[", "]", 17),
		"nested objects":     nested(`{"x":`, "}", 17),
		"deeply nested":      nested("[", "]", 12000),
		"many values":        `{"x":[` + strings.Repeat("0,", 600) + `0],` + body,
		"many names":         "{" + manyNames(600) + body,
		"not UTF-8":          "{\"\xff\":0," + body,
		"half a surrogate":   `{"\ud83d":0,` + body,
		"a surrogate alone":  strings.Replace(good, `"EK":"`, `"EK":"\udc00`, 1),
		"an escaped zero":    strings.Replace(good, `"EK":"`, `"EK":"\u0000`, 1),
		"another K":          strings.Replace(good, `"EK"`, `"E\u212a"`, 1),
		"EK and a zero":      strings.Replace(good, `"EK"`, `"EK\u0000"`, 1),
		"a comment":          "{/**/" + body,
		"a comma too many":   good[:len(good)-1] + ",}",
		"a BOM":              "\ufeff" + good,
	} {
		t.Run(name, func(t *testing.T) { refused(t, &v, []byte(msg), "payload: ") })
	}
	for i := range len(good) {
		if _, err := v.Begin([]byte(good[:i])); err == nil {
			t.Errorf("the first %d of %d bytes are taken", i, len(good))
		}
	}
	for name, msg := range map[string]string{
		"white space":  " {\t\"x\" :\r\n0 , " + body + "\n",
		"some nesting": nested("[", "]", 14),
		"an escape":    strings.Replace(good, `"EK"`, `"\u0045K"`, 1),
	} {
		if _, err := v.Begin([]byte(msg)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
