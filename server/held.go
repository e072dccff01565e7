package server

import (
	"errors"
	"strings"
	"sync/atomic"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// The server keeps data about a machine that has proved nothing yet, from the check of its payload until it has
// answered its challenge: its two keys, its certificates, and what the sources said about it. All of it is counted
// in bytes, since anybody can send a payload and take 60 seconds to answer.
const (
	// maxKept is how many bytes of certificates are kept for any machine: more than any
	// known EK certificate has. With the keys, and what sources said, that makes 4 KiB.
	maxKept = 2 << 10
	// These limit the bytes of certificates beyond maxKept that are held at once, 16 MiB in all: maxAsked while the
	// sources are asked, which parse the certificates and take five times as much; maxStrangers for machines that
	// answer a challenge or wait for a slow source, if no source lists them; and maxListed for such machines if a
	// source lists them. An honest chain has 5 KiB.
	maxAsked     = 4 << 20
	maxStrangers = 4 << 20
	maxListed    = 8 << 20
	// maxChecking is how many payloads are checked at once. Each check keeps a processor busy, so more would gain
	// nothing and would take memory, several times a payload's size each.
	maxChecking = 16
	// maxAnswers limits the bytes of event logs and DevID certificates that are held at once while the sources are
	// asked about their machines. A parsed event log refers to these bytes, and what a source parses takes at most
	// a few times as much.
	maxAnswers = 16 << 20
	// maxSaid is how many bytes are kept of what all sources together say about one machine.
	maxSaid = 512
)

// A budget counts bytes that are held, up to a limit. It is safe for concurrent use.
type budget struct {
	bytes atomic.Int64
	most  int64
}

// budgets are separate, so that strangers cannot use up what listed machines need.
type budgets struct {
	payloads, responses budget // whole messages, see maxArriving

	// Certificates:
	asked     budget // of machines about which the sources are being asked
	strangers budget // of machines that wait, or answer a challenge, and that no source lists so far
	listed    budget // of such machines that a source lists

	answers budget // event logs and DevIDs, of machines that have answered their challenge
}

func newBudgets() budgets {
	return budgets{
		payloads: budget{most: maxArriving}, responses: budget{most: maxAnswering},
		asked: budget{most: maxAsked}, strangers: budget{most: maxStrangers}, listed: budget{most: maxListed},
		answers: budget{most: maxAnswers},
	}
}

// of returns the budget for a machine that waits or answers a challenge. known says whether a source lists it.
func (b *budgets) of(known bool) *budget {
	if known {
		return &b.listed
	}
	return &b.strangers
}

// take takes n bytes if the budget has room for them, and reports whether it had.
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

// share returns how much of the budget is held, from 0 to 1.
func (b *budget) share() float64 { return float64(b.bytes.Load()) / float64(b.most) }

// give gives back n bytes that were taken.
func (b *budget) give(n int64) { b.bytes.Add(-n) }

// held is the evidence of a machine that has proved nothing yet, with its share of a budget.
type held struct {
	// evidence is Incomplete if there was no room for the machine's certificates.
	evidence *sources.Evidence
	bytes    int64
	of       *budget // nil if bytes is 0
}

// hold takes the evidence's share of a budget. If there is no room, it keeps the evidence
// without its certificates.
func hold(ev *sources.Evidence, of *budget) *held {
	h := &held{evidence: ev, bytes: weight(ev)}
	if h.bytes > 0 {
		h.account(of)
	}
	return h
}

// weight returns how many bytes the certificates in ev take from a budget: none up to maxKept, else their size.
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

// wait implements admission.Options.Wait: while a machine waits for a slow source, it gives its share of
// budgets.asked back to machines that do not wait. A stranger may wait only if it gets one of the strangers'
// places, and room for its certificates in the strangers' budget. A machine that a source lists may always wait.
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
	p.held.asked.give(n)
	return func() {
		p.held.asked.bytes.Add(n) // the caller moves or releases it next
		to.give(n)
		if !known {
			p.strangers.Leave()
		}
	}, true
}

// move moves the share to another budget. If that has no room, the evidence loses its certificates, as in hold.
func (h *held) move(to *budget) {
	if h.of != nil {
		h.of.give(h.bytes)
		h.account(to)
	}
}

func (h *held) account(of *budget) {
	if of.take(h.bytes) {
		h.of = of
		return
	}
	less := *h.evidence // a copy: a source that is stuck may still be reading h.evidence
	less.Certificate, less.Chain, less.Incomplete = nil, nil, true
	h.evidence, h.bytes, h.of = &less, 0, nil
}

// release gives back the share. The evidence must not be used any more.
func (h *held) release() {
	if h.of != nil {
		h.of.give(h.bytes)
		h.bytes, h.of = 0, nil
	}
}

// shorten cuts what the sources said to maxSaid bytes in all, since a reason may quote what the machine sent.
func shorten(answers []policy.Answer) {
	for i := range answers {
		a, most := &answers[i], maxSaid/len(answers)
		a.Verdict.Reason = strings.Clone(clean(a.Verdict.Reason, most))
		if a.Verdict.Unchecked != "" {
			a.Verdict.Unchecked = "see the reason"
		}
		switch {
		case a.Err == nil || len(a.Err.Error()) <= most:
		case errors.Is(a.Err, sources.ErrNeedsChallenge):
			a.Err = sources.ErrNeedsChallenge
		case errors.Is(a.Err, sources.ErrNeedsNetwork):
			a.Err = sources.ErrNeedsNetwork
		default:
			a.Err = errors.New(clean(a.Err.Error(), most))
		}
	}
}
