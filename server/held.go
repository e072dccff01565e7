package server

import (
	"errors"
	"strings"
	"sync/atomic"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// What the server keeps of a machine that has proved nothing, from the moment its payload
// is checked until it has answered its challenge, is counted in bytes: anybody can send a
// payload, and 60 seconds are long. Beside its two keys, that is its certificates and what
// the sources said of it.
const (
	// maxKept is how many bytes of certificates are kept of any machine: more than any
	// known EK certificate has. With the keys, and what sources said, that makes 4 KiB.
	maxKept = 2 << 10
	// How many bytes of certificates beyond that are held at once, 16 MiB in all: while
	// the sources are asked, who parse them, and that takes five times as much; of machines
	// that answer a challenge, or wait for a slow source, and that no source lists; and of
	// those that one does. An honest chain has 5 KiB.
	maxAsked     = 4 << 20
	maxStrangers = 4 << 20
	maxListed    = 8 << 20
	// maxChecking is how many payloads are checked at once: a processor is busy with each,
	// so that more would only take memory, of several times a payload's size.
	maxChecking = 16
	// maxSaid is how many bytes of what all sources together said of a machine are kept.
	maxSaid = 512
)

// A budget is how many bytes of certificates are held, at most so many.
type budget struct {
	bytes atomic.Int64
	most  int64
}

// budgets are apart, so that strangers cannot use up what listed machines need.
type budgets struct {
	asked     budget // of machines about which the sources are being asked
	strangers budget // of those that wait, or answer a challenge, if no source lists them so far
	listed    budget // and if one does
}

func newBudgets() budgets {
	return budgets{
		asked: budget{most: maxAsked}, strangers: budget{most: maxStrangers}, listed: budget{most: maxListed},
	}
}

// of returns the budget for the time of the challenge.
func (b *budgets) of(known bool) *budget {
	if known {
		return &b.listed
	}
	return &b.strangers
}

// take reports whether there is room for n bytes more, and takes it.
func (b *budget) take(n int64) bool {
	for {
		held := b.bytes.Load()
		if held+n > b.most {
			return false
		}
		if b.bytes.CompareAndSwap(held, held+n) {
			return true
		}
	}
}

// held is the evidence of a machine that has proved nothing, and its share of a budget.
type held struct {
	// evidence is incomplete if there was no room for the machine's certificates.
	evidence *sources.Evidence
	bytes    int64
	of       *budget // nil if bytes is 0
}

// hold holds evidence within a budget: without its certificates if there is no room.
func hold(ev *sources.Evidence, of *budget) *held {
	h := &held{evidence: ev, bytes: weight(ev)}
	if h.bytes > 0 {
		h.account(of)
	}
	return h
}

// weight returns how many bytes of a budget the certificates in ev need.
func weight(ev *sources.Evidence) int64 {
	n := int64(len(ev.Certificate))
	for _, der := range ev.Chain {
		n += int64(len(der))
	}
	if n <= maxKept {
		return 0
	}
	return n
}

// wait is an admission.Options.Wait: whoever is waited for while a source is slow
// gives budgets.asked back to those who are not. A stranger needs one of the strangers'
// places, and room for its certificates among theirs; a machine that a source lists is
// waited for in any case.
func (p *Plugin) wait(ev *sources.Evidence, known bool) (leave func(), ok bool) {
	n, to := weight(ev), p.held.of(known)
	switch {
	case !known && !p.strangers.Take():
		return nil, false
	case to.take(n):
	case known:
		return func() {}, true
	default:
		p.strangers.Leave()
		return nil, false
	}
	p.held.asked.bytes.Add(-n)
	return func() {
		p.held.asked.bytes.Add(n) // it is moved or released next
		to.bytes.Add(-n)
		if !known {
			p.strangers.Leave()
		}
	}, true
}

// move has another budget account for the evidence, as hold does.
func (h *held) move(to *budget) {
	if h.of != nil {
		h.of.bytes.Add(-h.bytes)
		h.account(to)
	}
}

func (h *held) account(of *budget) {
	if of.take(h.bytes) {
		h.of = of
		return
	}
	less := *h.evidence // a source that is stuck may still be reading the whole
	less.Certificate, less.Chain, less.Incomplete = nil, nil, true
	h.evidence, h.bytes, h.of = &less, 0, nil
}

// release gives back the share. The evidence is not used any more.
func (h *held) release() {
	if h.of != nil {
		h.of.bytes.Add(-h.bytes)
		h.bytes, h.of = 0, nil
	}
}

// shorten cuts what sources said to maxSaid bytes: a reason may quote what the machine
// has sent.
func shorten(answers []policy.Answer) {
	for i := range answers {
		a, most := &answers[i], maxSaid/len(answers)
		a.Verdict.Reason = strings.Clone(clean(a.Verdict.Reason, most))
		if a.Result() == "cannot_tell" && len(a.Err.Error()) > most {
			a.Err = errors.New(clean(a.Err.Error(), most))
		}
	}
}
