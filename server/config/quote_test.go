package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// The server asks machines for what the quote block sets, in every syntax. A key that is not set has
// the default that the documentation names.
func TestQuote(t *testing.T) {
	defaults := &config.Quote{PCRs: []int{0, 7}, Bank: "sha256", EventLog: "off"}
	all := &config.Quote{
		PCRs: []int{0, 2, 4, 7}, Bank: "sha384", EventLog: "required", Selectors: []int{4, 7}, Required: true,
	}
	for text, want := range map[string]*config.Quote{
		``:                                      nil,
		`quote { pcrs = [7, 0] }`:               defaults,
		`quote = { "pcrs" = [0, 7] }`:           defaults,
		`quote { pcrs = [0, 7] selectors = []}`: {PCRs: []int{0, 7}, Bank: "sha256", EventLog: "off", Selectors: []int{}},
		`quote {
			pcrs = [0, 2, 4, 7]
			bank = "sha384"
			event_log = "required"
			selectors = [7, 4]
			required = true
		}`: all,
	} {
		if d := cmp.Diff(want, mustParse(t, factory+text).Quote); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
	const whole = `{"pcrs": [0, 2, 4, 7], "bank": "sha384", "event_log": "required", "selectors": [4, 7], "required": true}`
	const source = `"source": {"hash_dir": {"factory": {"path": "/x"}}}`
	for _, text := range []string{
		`{"quote": ` + whole + `, ` + source + `}`,
		`{"quote": [` + whole + `], ` + source + `}`,
		throughSPIRE(t, inJSON(`{"quote": `+whole+`, `+source+`}`)),
		throughSPIRE(t, inJSONLists(`{"quote": [`+whole+`], `+source+`}`)),
		`{"quote": ` + whole + `, "hash_path": "/x", "ca_path": "/y"}`, // beside the incumbent's keys
	} {
		if d := cmp.Diff(all, mustParse(t, text).Quote); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
	}
	for _, text := range []string{`{"quote": [], ` + source + `}`, `{"quote": [[]], ` + source + `}`} {
		if q := mustParse(t, text).Quote; q != nil {
			t.Errorf("%s: %+v", text, q)
		}
	}
}

// A quote that is guessed at asks machines for less than somebody meant, and every rule that
// rests on it is worth less.
func TestQuoteProblems(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{`quote {}`, `quote: pcrs: is missing: write pcrs = [0, 2, 4, 7]`},
		{`quote { bank = "sha256" }`, `quote: pcrs: is missing`},
		{`quote { pcrs = [] }`, `quote: pcrs: is empty: name the PCRs to be quoted, or remove the block`},
		{`quote { pcrs = 7 }`, `quote: pcrs: is the number 7, but must be a list: write pcrs = [7]`},
		{`quote { pcrs = 24 }`, `quote: pcrs: is the number 24, but must be a list: write pcrs = [0]`},
		{`quote { pcrs = "7" }`, `quote: pcrs: is the string "7", but must be a list: write pcrs = [0]`},
		{`quote { pcrs = ["7"] }`, `quote: pcrs: contains the string "7", but must be a list of numbers without quotes, from 0 to 23`},
		{`quote { pcrs = [24] }`, `quote: pcrs: contains the number 24, but must be a list of whole numbers from 0 to 23`},
		{`quote { pcrs = [-1] }`, `quote: pcrs: contains the number -1, but must be`},
		{`quote { pcrs = [7.0] }`, `quote: pcrs: contains the number 7.0, but must be`},
		{`quote { pcrs = [7e0] }`, `quote: pcrs: contains the number 7e0, but must be`},
		{`quote { pcrs = [99999999999999999999] }`, `quote: pcrs: contains the number 99999999999999999999, but must be`},
		{`quote { pcrs = [true] }`, `quote: pcrs: contains true, but must be a list of whole numbers`},
		{`quote { pcrs = [0, 7, 7] }`, `quote: pcrs: contains 7 twice`},
		{`quote { pcrs = [0, 7, 07] }`, `quote: pcrs: contains 7 twice`},
		{`quote { pcrs = [` + strings.Repeat("0, ", 200_000) + `0] }`, `quote: pcrs: has 200001 entries; there are PCRs 0 to 23, each once`},
		{`quote { pcrs = [0] pcrs = [7] }`, `quote: pcrs: is set 2 times: keep one`},
		{`quote { pcrs = [0] selectors = [7] }`, `quote: selectors: contains 7, which is not in pcrs: only a quoted PCR can become a selector`},
		{`quote { pcrs = [7] selectors = [7, 7] }`, `quote: selectors: contains 7 twice`},
		{`quote { pcrs = [7] selectors = 7 }`, `quote: selectors: is the number 7, but must be a list: write selectors = [7]`},
		{`quote { pcrs = [7] bank = "sha1" }`, `quote: bank: is "sha1", and SHA-1 is broken: values in that bank prove nothing; write bank = "sha256"`},
		{`quote { pcrs = [7] bank = "SHA256" }`, `quote: bank: is "SHA256"; choose from sha256, sha384`},
		{`quote { pcrs = [7] bank = "sha265" }`, `quote: bank: is "sha265"; did you mean sha256?`},
		{`quote { pcrs = [7] bank = "" }`, `quote: bank: is empty`},
		{`quote { pcrs = [7] bank = 256 }`, `quote: bank: is the number 256, but must be a string`},
		{`quote { pcrs = [7] event_log = true }`, `quote: event_log: is true, but must be a string`},
		{`quote { pcrs = [7] event_log = "on" }`, `quote: event_log: is "on"; choose from off, optional, required`},
		{`quote { pcrs = [7] event_log = "require" }`, `quote: event_log: is "require"; did you mean required?`},
		{`quote { pcrs = [7] required = "true" }`, `quote: required: is the string "true", but must be true or false`},
		{`quote { pcrs = [7] pcr = [0] }`, `quote: pcr: unknown key; did you mean pcrs?`},
		{`quote { "pcrs" = [7] "eventlog" = "off" }`, `quote: eventlog: unknown key; did you mean event_log?`},
		{`quote { pcrs = [7] x = 1 }`, `quote: x: unknown key; choose from bank, event_log, pcrs, required, selectors`},
		{`quote { pcrs = [7] } quote { pcrs = [0] }`, `quote: is defined 2 times: keep one`},
		{`quote "boot" { pcrs = [7] }`, `quote: boot: unknown key`},
		{`quote = 7`, `quote: is the number 7, but must be a block: write quote { pcrs = [0, 2, 4, 7] }`},
		{`quotes { pcrs = [7] }`, `quotes: unknown key; did you mean quote?`},
		{
			`quote { pcrs = [24, 7] bank = "sha1" event_log = 1 selectors = ["x"] required = 0 x = 1 }`,
			`quote: bank: is "sha1", and SHA-1 is broken: values in that bank prove nothing; write bank = "sha256", which every TPM 2.0 has; ` +
				`quote: event_log: is the number 1, but must be a string: write event_log = "1"; ` +
				`quote: pcrs: contains the number 24, but must be a list of whole numbers from 0 to 23; ` +
				`quote: required: is the number 0, but must be true or false, without quotes; ` +
				`quote: selectors: contains the string "x", but must be a list of numbers without quotes, from 0 to 23; ` +
				`quote: x: unknown key`,
		},
	} {
		_, err := config.Parse(factory+tt.text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
	_, err := config.Parse(`{"quote": null, "hash_path": "/x"}`, trustDomain)
	if err == nil || !strings.Contains(err.Error(), `quote: is null, but must be a block`) {
		t.Errorf("null: %v", err)
	}
}

// A selector of a PCR that any program can reset is the machine's own choice, and whoever writes entries has to know.
func TestQuoteWarnings(t *testing.T) {
	for _, tt := range []struct {
		selectors string
		want      int
	}{{`[7, 22]`, 0}, {`[16]`, 1}, {`[7, 16, 23]`, 2}} {
		c := mustParse(t, factory+`quote { pcrs = [7, 16, 22, 23] selectors = `+tt.selectors+` }`)
		warned := 0
		for _, w := range c.Warnings {
			if strings.HasPrefix(w, "quote: selectors: contains ") && strings.Contains(w, "a value of choice") {
				warned++
			}
		}
		if warned != tt.want {
			t.Errorf("%s: %q", tt.selectors, c.Warnings)
		}
	}
}
