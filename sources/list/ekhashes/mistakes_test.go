package ekhashes_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// What people paste into a list: the error says what it looks like and what to write,
// with the text. "71 characters instead of 64" used to leave them counting.
func TestMistakesAreRecognised(t *testing.T) {
	const hash = "1b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c6879285ceff6094fa556af485c"
	raw, err := hex.DecodeString(hash)
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for _, b := range raw {
		pairs = append(pairs, fmt.Sprintf("%02X", b))
	}
	for name, test := range map[string]struct{ text, want string }{
		"prefix":        {"sha256:" + hash, `the hash has "sha256:" in front of it: write the 64 hex digits alone`},
		"0x":            {"0x" + hash, `the hash has "0x" in front of it`},
		"selector":      {"tpm:pub_hash:" + hash, `the hash has "tpm:pub_hash:" in front of it`},
		"SPIFFE ID":     {"spiffe://example.org/spire/agent/tpm/" + hash, `the hash has "spiffe://example.org/spire/agent/tpm/" in front`},
		"log":           {"ek_hash=" + hash, `the hash has "ek_hash=" in front of it`},
		"file":          {hash + ".txt", `the hash has ".txt" behind it`},
		"in quotes":     {"'" + hash + "',", `the hash stands between "'" and "',"`},
		"colons":        {strings.Join(pairs, ":"), `is a hash with something between its digits: write the 64 hex digits alone`},
		"base64":        {base64.StdEncoding.EncodeToString(raw), `is base64: write the hash in hex, ` + hash},
		"base64url":     {base64.RawURLEncoding.EncodeToString(raw), `is base64: write the hash in hex, ` + hash},
		"SHA-1":         {hash[:40], `has 40 hex digits, as many as a SHA-1: an EK hash is a SHA-256, of 64`},
		"SHA-384":       {hash + hash[:32], `has 96 hex digits, as many as a SHA-384`},
		"SHA-512":       {hash + hash, `has 128 hex digits, as many as a SHA-512`},
		"too short":     {hash[1:], `63 characters instead of a hash's 64 hex digits: "b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c687"…`},
		"letter":        {"l" + hash[1:], `64 characters that are not all hex digits: "lb5bbe2e`},
		"PEM":           {"-----BEGIN PUBLIC KEY-----", "PEM, not a list of EK hashes: write the hash that tpm-attestor ek shows for it"},
		"endless":       {strings.Repeat("x", 100_000), "100000 characters instead of a hash's 64 hex digits: \"xxxx"},
		"colons, twice": {strings.Join(append(pairs, pairs...), ":"), "characters instead of"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, "# list\n"+test.text+" name\n", ekhashes.Options{})
			checkMistake(t, s, err, "line 2: ", test.want)
			s, err = parse(t, `{"keys": ["`+test.text+`"]}`, ekhashes.Options{})
			checkMistake(t, s, err, "keys[0] (byte 10): ", test.want)
		})
	}
	for name, test := range map[string]struct{ line, want string }{
		"the agent's": {"EK hash: " + hash + "  (RSA 2048)", `a hash stands behind "EK hash: ": write the hash first, then a name or -, then labels`},
		"name first":  {"us-east-17 " + hash, `a hash stands behind "us-east-17 "`},
		"CSV":         {"us-east-17," + hash, `the hash has "us-east-17," in front of it`},
		"a log's":     {`level=warn msg="Attestation failed" ek_hash=` + hash + " peer=10.0.0.1", `a hash stands behind "level=warn msg=\"Attestation failed`},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.line, ekhashes.Options{})
			checkMistake(t, s, err, "line 1: ", test.want)
		})
	}
}

func checkMistake(t *testing.T, s *ekhashes.Document, err error, place, want string) {
	t.Helper()
	if s != nil || err == nil || !strings.HasPrefix(err.Error(), place) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v\nwant %s…%s", err, place, want)
	}
	if err != nil && len(err.Error()) > 300 {
		t.Errorf("%d bytes for a log", len(err.Error()))
	}
}

// The error of a list with several mistakes names up to twenty of them, each with its place:
// otherwise a person who corrects them would have to reload the list once for each. A list that is
// something else altogether is reported once.
func TestMistakesAreToldAtOnce(t *testing.T) {
	places := func(err error) (all []string) {
		several, ok := err.(list.FormatErrors) //nolint:errorlint // bare
		if !ok {
			t.Fatalf("%T: %v", err, err)
		}
		for _, one := range several {
			all = append(all, one.Place)
		}
		return all
	}
	_, err := parse(t, "x\n"+hashA+"\n# c\n\nsha256:"+hashB+"\n"+hashB+" n "+strings.Repeat("l", 250)+"\n"+hashC+"\n", ekhashes.Options{})
	if got := fmt.Sprint(places(err)); got != "[line 1 line 5 line 6]" {
		t.Errorf("%s: %v", got, err)
	}
	if _, ok := errors.AsType[*list.FormatError](err); !ok {
		t.Error("none of them is found")
	}
	a := `"` + hashA + `"`
	_, err = parse(t, `{"keys": ["x", `+a+`, {"hash": "y", "labels": [["z"]]}, {"name": "n"}, [1, [2]], 5, {"hash": "`+hashB+`", "labels": [1]}, `+
		`{"x": {"y": [1]}, "hash": `+a+`, "hash": `+a+`}, "`+hashC+`"], "serial": 1}`, ekhashes.Options{})
	if got := fmt.Sprint(places(err)); got != "[keys[0] (byte 10) keys[2] (byte 92) keys[3] (byte 129) keys[4] (byte 132) "+
		"keys[5] (byte 142) keys[6] (byte 233) keys[7] (byte 332)]" {
		t.Errorf("%s: %v", got, err)
	}
	// The mistake that ends the parsing is reported last, and nothing is listed.
	s, err := parse(t, `{"keys": ["x", "y"], "serial": -1}`, ekhashes.Options{})
	if got := fmt.Sprint(places(err)); s != nil || got != "[keys[0] (byte 10) keys[1] (byte 15) byte 31]" {
		t.Errorf("%s: %v", got, err)
	}
	if s, err = parse(t, `{"keys": ["x", `+a+`, "y"`, ekhashes.Options{}); s != nil || !strings.Contains(err.Error(), "cut off") {
		t.Error(err)
	}
	for name, bad := range map[string]string{
		"text": strings.Repeat("x\n", 1000), "JSON": `{"keys": [` + strings.Repeat(`"x", `, 1000) + `"x"]}`,
	} {
		_, err := parse(t, bad, ekhashes.Options{})
		if n := len(places(err)); n != list.MaxMistakes || !strings.Contains(err.Error(), "there may be more") {
			t.Errorf("%s: %d mistakes", name, n)
		}
	}
	for name, list := range map[string]string{
		"PEM": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "HTML": "<html>\n<body>\n",
		"Latin-1": "\xfc\n\xfc\n",
	} {
		if _, err := parse(t, list, ekhashes.Options{}); strings.Count(err.Error(), "line ") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A misspelt field is ignored like an inventory's own field: "label" instead of "labels" admits a
// machine without its labels, and "revoked" or an expiry does not keep it out. There is a warning,
// once for each name, but none about fields that an inventory may well have.
func TestDoubtfulFields(t *testing.T) {
	entry := func(fields string) string { return `{"keys": [{"hash": "` + hashA + `", ` + fields + `}]}` }
	for name, test := range map[string]struct{ list, want string }{
		"label":          {entry(`"label": ["a"]`), `keys[0] (byte 87): the field "label" means nothing: is it meant to be "labels"?`},
		"Name":           {entry(`"Name": "a"`), `is it meant to be "name"?`},
		"lables":         {entry(`"lables": ["a"]`), `is it meant to be "labels"?`},
		"anme":           {entry(`"anme": "a"`), `is it meant to be "name"?`},
		"revoked":        {entry(`"revoked": true`), `the field "revoked" means nothing, and the TPM is listed all the same: leave the entry out`},
		"revoked when":   {entry(`"revoked": "2026-01-01"`), `"revoked" means nothing`},
		"revoked, why":   {entry(`"revoked": {"reason": "stolen"}`), `"revoked" means nothing`},
		"not revoked":    {entry(`"revoked": false`), ""},
		"not revoked, 0": {entry(`"revoked": null, "stolen": 0, "blocked": ""`), ""},
		"enabled":        {entry(`"enabled": true`), ""},
		"not enabled":    {entry(`"enabled": false`), `the field "enabled" means nothing, and the TPM is listed all the same`},
		"expires":        {entry(`"expires": "2020-01-01T00:00:00Z"`), `the field "expires" means nothing, and the TPM is listed all the same: an entry has no expiry`},
		"not-after":      {entry(`"not-after": "2020-01-01T00:00:00Z"`), `an entry has no expiry of its own`},
		"list's expiry":  {`{"keys": [], "expiry": "2020-01-01T00:00:00Z"}`, `the field "expiry" means nothing: is it meant to be "expires"?`},
		"Serial":         {`{"keys": [], "Serial": 5}`, `byte 13: the field "Serial" means nothing: is it meant to be "serial"?`},
		"their own":      {entry(`"owner": "x", "site": "y", "model": "z", "rack": 5, "tags": [], "note": "", "date": ""`), ""},
		"within another": {entry(`"x": {"revoked": true}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(t, test.list, ekhashes.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(s.Warnings(), "; ")
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf(`{"hash": "%064x", "label": "l", "x%d": 1}`, i, i))
	}
	s, err := parse(t, `{"keys": [`+strings.Join(many, ", ")+`]}`, ekhashes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0], "keys[0] ") || !strings.HasSuffix(w[0], "(and in 999 more places)") {
		t.Errorf("%q", w)
	}
	if _, err := parse(t, `{"key": ["`+hashA+`"]}`, ekhashes.Options{}); err == nil || !strings.Contains(err.Error(), `is it meant to be "keys"?`) {
		t.Error(err)
	}
}
