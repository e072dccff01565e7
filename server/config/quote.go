package config

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// A Quote is what the server asks about a machine's boot in its challenge.
type Quote struct {
	// PCRs are the indexes of the PCRs to be quoted: at least one, sorted, none twice, each
	// from 0 to 23.
	PCRs []int
	// Bank is the bank of these PCRs: "sha256" or "sha384".
	Bank string
	// EventLog says whether the server asks for the event log: EventLogOff,
	// EventLogOptional or EventLogRequired.
	EventLog string
	// Selectors are the PCRs whose values become selectors, sorted, none twice.
	Selectors []int
	// Required is true if a machine that does not quote is refused.
	Required bool
}

// The values of Quote.EventLog.
const (
	EventLogOff      = "off"
	EventLogOptional = "optional"
	EventLogRequired = "required"
)

const (
	quoteKey     = "quote"
	quoteExample = `quote { pcrs = [0, 2, 4, 7] }`
	// mostPCR is the last PCR of a PC Client TPM (TCG PC Client Platform TPM Profile 1.05, 3.6).
	mostPCR = 23
)

// decodeQuote reads the quote block. It returns nil if there is none.
func decodeQuote(ps *problems, values []*node) *Quote {
	before := len(ps.list)
	blocks := ps.blocks(quoteKey, values, quoteExample)
	if len(blocks) == 0 {
		if len(ps.list) > before {
			return &Quote{} // there was a quote, with a mistake
		}
		return nil
	}
	if len(blocks) > 1 {
		ps.add(quoteKey, "is defined %d times: keep one", len(blocks))
		blocks = blocks[:1]
	}
	b := newBody(quoteKey, ps, blocks...)
	q := &Quote{
		PCRs:      b.pcrs("pcrs"),
		Bank:      b.bank("bank"),
		EventLog:  b.choice("event_log", EventLogOff, EventLogOptional, EventLogRequired),
		Selectors: b.pcrs("selectors"),
		Required:  b.boolean("required", false),
	}
	switch {
	case b.wrong["pcrs"]:
	case !b.has("pcrs"):
		b.fail("pcrs", "is missing: write pcrs = [0, 2, 4, 7]")
	case len(q.PCRs) == 0:
		b.fail("pcrs", "is empty: name the PCRs to be quoted, or remove the block")
	default:
		for _, pcr := range q.Selectors {
			if !slices.Contains(q.PCRs, pcr) {
				b.fail("selectors", "contains %d, which is not in pcrs: only a quoted PCR can become a selector", pcr)
			}
		}
	}
	b.finish()
	return q
}

// warnOfQuote warns of selectors that prove nothing.
func (c *Config) warnOfQuote() {
	if c.Quote == nil {
		return
	}
	for _, pcr := range c.Quote.Selectors {
		if bootprofiles.Resettable(pcr) {
			c.warn(under(quoteKey, "selectors"), fmt.Sprintf(
				"contains %d, which any program with access to the TPM can reset and give a value of choice: "+
					"an entry that selects by it admits whoever wants that", pcr))
		}
	}
}

// pcrs returns a list of PCRs, sorted; nil if the block does not have the key.
func (b *body) pcrs(key string) []int {
	n := b.one(key)
	if n == nil {
		return nil
	}
	if n.kind != list {
		example := "0"
		if _, ok := n.pcr(); ok {
			example = n.text
		}
		b.fail(key, "is %s, but must be a list: write %s = [%s]", n, key, example)
		return nil
	}
	if len(n.elems) > mostPCR+1 {
		b.fail(key, "has %d entries; there are PCRs 0 to %d, each once", len(n.elems), mostPCR)
		return nil
	}
	all := make([]int, 0, len(n.elems))
	for _, e := range n.elems {
		switch pcr, ok := e.pcr(); {
		case !ok && e.kind == text:
			b.fail(key, "contains %s, but must be a list of numbers without quotes, from 0 to %d", e, mostPCR)
		case !ok:
			b.fail(key, "contains %s, but must be a list of whole numbers from 0 to %d", e, mostPCR)
		case slices.Contains(all, pcr):
			b.fail(key, "contains %d twice", pcr)
		default:
			all = append(all, pcr)
		}
	}
	slices.Sort(all)
	return all
}

// pcr returns the index of the PCR that a number stands for.
func (n *node) pcr() (int, bool) {
	if n.kind != number {
		return 0, false
	}
	pcr, err := strconv.Atoi(n.text)
	return pcr, err == nil && pcr >= 0 && pcr <= mostPCR
}

// bank returns the configured bank of PCRs.
func (b *body) bank(key string) string {
	if values := b.all(key); len(values) == 1 && values[0].kind == text && values[0].text == "sha1" {
		b.fail(key, `is "sha1", and SHA-1 is broken: values in that bank prove nothing; `+
			`write bank = "sha256", which every TPM 2.0 has`)
		return "sha256"
	}
	return b.choice(key, "sha256", "sha384")
}

// choice returns one of some strings, the first if the block does not have the key.
func (b *body) choice(key string, choices ...string) string {
	chosen := b.text(key)
	switch {
	case chosen == "":
		return choices[0]
	case !slices.Contains(choices, chosen):
		b.fail(key, "is %q%s", shorten(chosen), b.problems.suggest(chosen, choices))
		return choices[0]
	}
	return chosen
}
