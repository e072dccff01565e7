package sourcetest

import (
	"context"
	"errors"
	"reflect"
	"runtime"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// testOpen: making a source leaves no goroutine and no open file behind, and reads nothing, since
// configurations are also checked on machines where they will never run.
func testOpen(tb run) {
	b := tb.h.New(tb)
	if b.Break != nil {
		b.Break()
		defer b.Mend()
	}
	var kept []sources.Source
	goroutines, files := runtime.NumGoroutine(), openFiles()
	for range rounds {
		kept = append(kept, b.Open())
	}
	if n := runtime.NumGoroutine() - goroutines; n >= noise {
		tb.Errorf("%d sources that were only made left %d goroutines", rounds, n)
	}
	if n := openFiles() - files; n >= noise {
		tb.Errorf("%d sources that were only made left %d open files", rounds, n)
	}
	runtime.KeepAlive(kept)
}

// testAnswers: a TPM is listed as long as the data lists it, and no other TPM is.
func testAnswers(tb run) {
	s := newSubject(tb, tb.h)
	one, two := s.evidence(tb), s.evidence(tb)
	s.load(tb)
	s.wantListed(tb, one, false, "nobody is listed")
	s.list(tb, one)
	s.wantListed(tb, one, true, "one is listed")
	s.wantListed(tb, two, false, "another is listed")
	s.list(tb, two)
	s.wantListed(tb, one, true, "both are listed")
	s.wantListed(tb, two, true, "both are listed")
	s.unlist(tb, one)
	s.wantListed(tb, one, false, "one is listed no more")
	s.wantListed(tb, two, true, "the other is listed still")
}

// testAttributes: a TPM's verdict has what the data says about that TPM.
func testAttributes(tb run) {
	if !tb.h.Attributes {
		return
	}
	s := newSubject(tb, tb.h)
	one, two := s.evidence(tb), s.evidence(tb)
	s.list(tb, one)
	s.list(tb, two)
	for _, ev := range []*sources.Evidence{one, two} {
		v, err := s.check(tb, ev)
		want := s.attributes(ev)
		if err != nil || v.Attributes.Name != want.Name || !slices.Equal(v.Attributes.Labels, want.Labels) {
			tb.Errorf("attributes %+v, error %v, want %+v", v.Attributes, err, want)
		}
	}
}

// testNeedsChallenge: a source that needs the proof says so before the challenge and knows
// after it; every other source knows the same before and after.
func testNeedsChallenge(tb run) {
	s := newSubject(tb, tb.h)
	ev := s.evidence(tb)
	s.list(tb, ev)
	v, err := s.checkOnce(tb.Context(), tb, ev)
	switch {
	case tb.h.NeedsProof && !errors.Is(err, sources.ErrNeedsChallenge):
		tb.Errorf("before the challenge: %+v, %v, want ErrNeedsChallenge", v, err)
	case tb.h.Fetches && errors.Is(err, sources.ErrNeedsNetwork):
	case !tb.h.NeedsProof && (err != nil || !v.Listed):
		tb.Errorf("before the challenge: %+v, %v, want listed", v, err)
	}
	if v, err := s.resolve(tb.Context(), tb, s.proven(ev)); err != nil || !v.Listed {
		tb.Errorf("after the challenge: %+v, %v, want listed", v, err)
	}
}

// testAskedAgain: with the proof, Check answers in full, however often it is asked and whatever it
// has said before, from the data as it is then: a TPM that was removed after the check before the
// challenge is no longer listed.
func testAskedAgain(tb run) {
	s := newSubject(tb, tb.h)
	ev := s.evidence(tb)
	after := s.proven(ev)
	before := func() {
		_, _ = s.checkOnce(tb.Context(), tb, ev) // only as the filter
	}
	want := s.attributes(ev)
	whole := func(when string) {
		for range 3 {
			v, err := s.resolve(tb.Context(), tb, after)
			a := v.Attributes
			switch {
			case err != nil || !v.Listed:
				tb.Errorf("%s: %+v, error %v, want listed", when, v, err)
			case tb.h.Attributes && (a.Name != want.Name || !slices.Equal(a.Labels, want.Labels)):
				tb.Errorf("%s: attributes %+v, want %+v", when, a, want)
			}
		}
	}
	s.list(tb, ev)
	before()
	whole("asked after the challenge")
	before()
	s.unlist(tb, ev)
	s.wantListed(tb, after, false, "removed during the challenge")
	before()
	s.list(tb, ev)
	whole("listed during the challenge")
}

// testCannotTell: if the data is unreadable, the answer is neither "listed" nor "not listed". A
// Loader's Load fails, and its last good data stays.
func testCannotTell(tb run) {
	s := newSubject(tb, tb.h)
	if s.Break == nil {
		return
	}
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.list(tb, listed)
	s.Break()
	if _, ok := s.source.(sources.Loader); ok {
		for range 2 {
			if err := s.tryLoad(tb.Context()); err == nil {
				tb.Error("Load of unreadable data succeeded")
			}
			s.wantListed(tb, listed, true, "the last good data lists it")
			s.wantListed(tb, stranger, false, "the last good data does not list it")
		}
	} else {
		s.wantCannotTell(tb, listed, "the data is unreadable")
		s.wantCannotTell(tb, stranger, "the data is unreadable")
	}
	s.Mend()
	s.load(tb)
	s.wantListed(tb, listed, true, "the data is readable again")
	s.wantListed(tb, stranger, false, "the data is readable again")
}

// testNotLoaded: a source without data cannot tell. If it said "not listed", a deny rule would not
// deny anybody.
func testNotLoaded(tb run) {
	s := newSubject(tb, tb.h)
	if _, ok := s.source.(sources.Loader); !ok {
		return
	}
	ev := s.evidence(tb)
	s.List(ev, s.attributes(ev))
	s.wantCannotTell(tb, ev, "before the first Load")
	if s.Break == nil {
		return
	}
	s.Break()
	if err := s.tryLoad(tb.Context()); err == nil {
		tb.Error("the first Load succeeded, of unreadable data")
	}
	s.wantCannotTell(tb, ev, "after a first Load that failed")
	s.Mend()
	s.load(tb)
	s.wantListed(tb, ev, true, "the data is readable")
}

// testHostile: evidence that only resembles a listed TPM's is never listed, and does not make
// the source panic, write, or give wrong answers later.
func testHostile(tb run) {
	s := newSubject(tb, tb.h)
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.list(tb, listed)
	for _, x := range hostileEvidence(listed, stranger) {
		for _, ev := range []*sources.Evidence{x.ev, s.proven(x.ev)} {
			if ev.Proof == nil && tb.h.NeedsProof {
				continue
			}
			if v, _ := s.resolve(tb.Context(), tb, ev); v.Listed {
				tb.Errorf("%s: listed: %s", x.name, v.Reason)
			}
			if !tb.h.Fetches || ev.Proof == nil {
				continue
			}
			if v, _ := s.fetchOnce(tb.Context(), tb, ev); v.Listed { // whatever Check answered
				tb.Errorf("%s: listed by what is fetched: %s", x.name, v.Reason)
			}
		}
	}
	s.wantListed(tb, listed, true, "after hostile evidence")
	s.wantListed(tb, stranger, false, "after hostile evidence")
}

// testHostileBoot: a source that lists a TPM by its boot checks all of it. A boot that only
// resembles that of a listed TPM is never listed, and does not make the source panic or give wrong
// answers later.
func testHostileBoot(tb run) {
	if tb.h.Boot == nil {
		return
	}
	s := newSubject(tb, tb.h)
	listed := s.evidence(tb)
	s.list(tb, listed)
	s.wantListed(tb, listed, true, "before hostile boots")
	for _, x := range hostileBoots(func() *sources.Boot { return tb.h.Boot(listed) }) {
		ev := s.proven(listed)
		ev.Proof.Boot = x.boot
		if v, _ := s.resolve(tb.Context(), tb, ev); v.Listed {
			tb.Errorf("%s: listed: %s", x.name, v.Reason)
		}
	}
	s.wantListed(tb, listed, true, "after hostile boots")
}

// testHostileDevID: a source that lists a TPM by its DevID checks the key that was proved. A DevID
// that only resembles that of a listed TPM is never listed, and does not make the source panic or
// give wrong answers later.
func testHostileDevID(tb run) {
	if tb.h.DevID == nil {
		return
	}
	s := newSubject(tb, tb.h)
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.list(tb, listed)
	s.wantListed(tb, listed, true, "before hostile DevIDs")
	for _, x := range hostileDevIDs(tb.h.DevID(listed), tb.h.DevID(stranger)) {
		ev := s.proven(stranger)
		ev.Proof.DevID = x.devID
		if v, _ := s.resolve(tb.Context(), tb, ev); v.Listed {
			tb.Errorf("%s: listed: %s", x.name, v.Reason)
		}
	}
	s.wantListed(tb, listed, true, "after hostile DevIDs")
	s.wantListed(tb, stranger, false, "after hostile DevIDs")
}

// testContextEnded: a call whose context has ended returns, and its answer is right or an
// error.
func testContextEnded(tb run) {
	s := newSubject(tb, tb.h)
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.list(tb, listed)
	ctx, cancel := context.WithCancel(tb.Context())
	cancel()
	within(tb, "a Check whose context has ended", func() {
		if v, err := s.checkOnce(ctx, tb, s.proven(listed)); err == nil && !v.Listed {
			tb.Error("a listed TPM is not listed where the context has ended")
		}
		if v, err := s.checkOnce(ctx, tb, s.proven(stranger)); err == nil && v.Listed {
			tb.Error("a stranger is listed where the context has ended")
		}
	})
	within(tb, "a Load whose context has ended", func() { _ = s.tryLoad(ctx) })
	s.wantListed(tb, listed, true, "after a Load whose context had ended")
	s.wantListed(tb, stranger, false, "after a Load whose context had ended")
}

// testEvidenceIsCallers: a source keeps nothing of the evidence, so that no later answer
// changes if a caller reuses its memory. Every call in the suite checks that Check does not
// modify the evidence.
func testEvidenceIsCallers(tb run) {
	s := newSubject(tb, tb.h)
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.list(tb, listed)
	reused := *listed
	if _, err := s.check(tb, &reused); err != nil {
		tb.Errorf("Check: %v", err)
	}
	reused = *stranger
	s.wantListed(tb, listed, true, "its evidence was used for a stranger")
	s.wantListed(tb, &reused, false, "a stranger in memory that was a listed TPM's")
	reused = *listed
	s.wantListed(tb, &reused, true, "a listed TPM in memory that was a stranger's")
	s.wantListed(tb, stranger, false, "its evidence was used for a listed TPM")
}

// testVerdictIsCallers: two verdicts share no memory, so that no later answer changes if a
// caller modifies a verdict.
func testVerdictIsCallers(tb run) {
	s := newSubject(tb, tb.h)
	ev := s.evidence(tb)
	s.list(tb, ev)
	first, _ := s.check(tb, ev)
	kept := first.Attributes.Clone()
	forge(&first)
	second, _ := s.check(tb, ev)
	if !reflect.DeepEqual(second.Attributes, kept) {
		tb.Errorf("a caller changed a verdict, and the next one is %+v, want %+v", second.Attributes, kept)
	}
}

// forge changes what a verdict points to.
func forge(v *sources.Verdict) {
	for i := range v.Attributes.Labels {
		v.Attributes.Labels[i] = "forged"
	}
	for i := range v.Attributes.CAs {
		v.Attributes.CAs[i] = "forged"
	}
	for i := range v.Attributes.Profiles {
		v.Attributes.Profiles[i] = "forged"
	}
	if c := v.Attributes.Certificate; c != nil {
		*c = sources.EKCertificate{Serial: "f00"}
	}
	if d := v.Attributes.DevID; d != nil {
		for _, values := range [][]string{d.SubjectCN, d.SubjectO, d.SubjectOU, d.SubjectSerialNumber, d.IssuerCN} {
			for i := range values {
				values[i] = "forged"
			}
		}
		*d = sources.DevIDCertificate{Serial: "f00"}
	}
}

// testNothingWritten: nothing that an attesting machine sends is written where the source
// reads.
func testNothingWritten(tb run) {
	s := newSubject(tb, tb.h)
	if s.Content == nil {
		return
	}
	listed, stranger := s.evidence(tb), s.evidence(tb)
	s.list(tb, listed)
	before := s.Content()
	all := append(hostileEvidence(listed, stranger), hostile{"listed", listed}, hostile{"stranger", stranger})
	for _, x := range all {
		if _, _ = s.check(tb, x.ev); !reflect.DeepEqual(s.Content(), before) {
			tb.Fatalf("Check wrote to the data: %s", x.name)
		}
	}
	if s.load(tb); !reflect.DeepEqual(s.Content(), before) {
		tb.Error("Load wrote to the data")
	}
}
