package sourcetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// TestMain fails if a test has left a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// certified returns the evidence of a TPM with a self-signed certificate.
func certified(tb testing.TB) *sources.Evidence {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "EK"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	ev := NewEvidence(tb)
	ev.EK, ev.Certificate = &key.PublicKey, der
	return ev
}

// TestFingerprint: the suite sees any change to the evidence; otherwise it could not tell that
// a source makes one.
func TestFingerprint(t *testing.T) {
	for name, change := range map[string]func(ev *sources.Evidence){
		"hash":                func(ev *sources.Evidence) { ev.EKHash[31]++ },
		"another key":         func(ev *sources.Evidence) { ev.EK = NewEvidence(t).EK },
		"no key":              func(ev *sources.Evidence) { ev.EK = nil },
		"key":                 func(ev *sources.Evidence) { ev.EK.(*ecdsa.PublicKey).Curve = elliptic.P384() },
		"no certificate":      func(ev *sources.Evidence) { ev.Certificate = nil },
		"certificate's bytes": func(ev *sources.Evidence) { ev.Certificate[7]++ },
		"incomplete":          func(ev *sources.Evidence) { ev.Incomplete = true },
		"chain":               func(ev *sources.Evidence) { ev.Chain = append(ev.Chain, ev.Certificate) },
		"chain's certificate": func(ev *sources.Evidence) { ev.Chain[0][7]++ },
		"no proof":            func(ev *sources.Evidence) { ev.Proof = nil },
		"PCR":                 func(ev *sources.Evidence) { ev.Proof.Boot.PCRs[7][31]++ },
		"no PCR":              func(ev *sources.Evidence) { delete(ev.Proof.Boot.PCRs, 7) },
		"log":                 func(ev *sources.Evidence) { ev.Proof.Boot.Log.Replays[7] = false },
		"DevID":               func(ev *sources.Evidence) { ev.Proof.DevID.Chain[0][7]++ },
		"no DevID":            func(ev *sources.Evidence) { ev.Proof.DevID = nil },
	} {
		ev := certified(t)
		ev.Chain = [][]byte{certified(t).Certificate}
		ev.Proof = &sources.Proof{AK: ev.EK, Boot: bootOf(ev), DevID: devIDOf(certify(t))}
		before := fingerprint(ev)
		if fingerprint(ev) != before {
			t.Fatal("two fingerprints of one evidence differ")
		}
		if change(ev); fingerprint(ev) == before {
			t.Errorf("%s: the change was not seen", name)
		}
	}
}

// TestHostileEvidence: none of it equals the listed TPM's evidence, which a source would be
// right to list, and it has certificates if the harness has them.
func TestHostileEvidence(t *testing.T) {
	listed, stranger := certified(t), certified(t)
	names := map[string]bool{}
	for _, x := range hostileEvidence(listed, stranger) {
		if names[x.name] {
			t.Errorf("%s: twice", x.name)
		}
		names[x.name] = true
		if x.ev.EKHash == listed.EKHash || x.ev.EK == listed.EK {
			t.Errorf("%s: is the listed TPM's", x.name)
		}
		if x.name == "a certificate of garbage" && !bytes.HasPrefix(listed.Certificate, x.ev.Certificate) {
			t.Error("the garbage does not resemble the listed TPM's certificate")
		}
	}
	if !names["a listed TPM's certificate in the chain"] || len(names) < 40 {
		t.Errorf("%d hostile evidences", len(names))
	}
}

// TestTree: the suite sees any change beneath a directory; otherwise it could not tell that a
// source writes.
func TestTree(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sub", "file")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Dir(file), 0o700))
	must(os.WriteFile(file, []byte("a"), 0o600))
	for _, change := range []struct {
		name string
		do   func() error
	}{
		{"content", func() error { return os.WriteFile(file, []byte("b"), 0o600) }},
		{"time", func() error { return os.Chtimes(file, time.Unix(1, 0), time.Unix(1, 0)) }},
		{"mode", func() error { return os.Chmod(file, 0o640) }},
		{"new file", func() error { return os.WriteFile(file+"2", nil, 0o600) }},
		{"new link", func() error { return os.Symlink("x", file+"3") }},
		{"removed", func() error { return os.Remove(file) }},
		{"all removed", func() error { return os.RemoveAll(dir) }},
	} {
		before := Tree(dir)
		if !reflect.DeepEqual(Tree(dir), before) {
			t.Fatal("two looks at one tree differ")
		}
		must(change.do())
		if reflect.DeepEqual(Tree(dir), before) {
			t.Errorf("%s: the change was not seen", change.name)
		}
	}
}

// TestFakes pins what other tests rely on.
func TestFakes(t *testing.T) {
	ev := NewEvidence(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fault := errors.New("a fault")
	released := make(chan struct{})
	close(released)
	listed := Lists(sources.Attributes{Name: "n"})
	for _, c := range []struct {
		name   string
		answer Answer
		ev     *sources.Evidence
		listed bool
		err    error
	}{
		{"lists", listed, ev, true, nil},
		{"lists not", ListsNot(), ev, false, nil},
		{"fails", Fails(fault), ev, false, fault},
		{"needs the challenge", NeedsChallenge(listed), ev, false, sources.ErrNeedsChallenge},
		{"after the challenge", NeedsChallenge(listed), Proven(ev), true, nil},
		{"waits", Waits(), ev, false, context.Canceled},
		{"hangs", Hangs(released, listed), ev, true, nil},
	} {
		f := NewFake(c.answer)
		v, err := f.Check(ctx, c.ev)
		if v.Listed != c.listed || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v", c.name, v, err)
		}
		if all, busy, most := f.Calls(); all != 1 || busy != 0 || most != 1 {
			t.Errorf("%s: %d calls, %d busy, %d at most", c.name, all, busy, most)
		}
	}
	if v, err := new(Fake).Check(ctx, ev); v.Listed || err != nil {
		t.Errorf("the zero Fake: %+v, %v", v, err)
	}
	func() {
		f := NewFake(Panics(fault))
		defer func() {
			p, _ := recover().(error)
			if _, busy, _ := f.Calls(); !errors.Is(p, fault) || busy != 0 {
				t.Error("no panic, or a call that is still counted")
			}
		}()
		_, _ = f.Check(ctx, ev)
	}()
	var l LoadingFake
	if l.Load(ctx) != nil || l.Schedule().Every != time.Hour || !l.Status().Loaded.IsZero() {
		t.Error("the zero LoadingFake does something")
	}
	l.OnLoad = func(context.Context) error { return fault }
	l.OnWatch = func(context.Context, func()) error { return fault }
	l.OnStatus = func() sources.Status { return sources.Status{Entries: 1} }
	if !errors.Is(l.Load(ctx), fault) || !errors.Is(l.Watch(ctx, nil), fault) || l.Status().Entries != 1 {
		t.Error("the LoadingFake does not what it was told")
	}
}
