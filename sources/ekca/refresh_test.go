package ekca_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// run loads src in a bubble of synctest as often as its schedule says, and returns how
// often that has found something new, or failed, as a function.
func run(t *testing.T, src *ekca.Source) (loads func() int, stop func()) {
	t.Helper()
	var count atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(src.Schedule().Every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			before := src.Status().Loaded
			if err := src.Load(ctx); err != nil || !src.Status().Loaded.Equal(before) {
				count.Add(1)
			}
		}
	}()
	return func() int { return int(count.Load()) }, func() {
		cancel()
		<-ended
	}
}

// after lets fake time pass, and what it causes happen.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// The files are looked at every 30 seconds and loaded only when they have changed:
// an attestation never reads them.
func TestRunReadsWhatHasChanged(t *testing.T) {
	dir := t.TempDir()
	a, b := newRoot(t, "A"), newRoot(t, "B")
	ekA, ekB := a.ek(t), b.ek(t)
	certstest.Write(t, filepath.Join(dir, "a.pem"), certstest.PEM(a.cert))
	synctest.Test(t, func(t *testing.T) {
		src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
		refreshes, stop := run(t, src)
		defer stop()
		after(10 * time.Minute)
		if n := refreshes(); n != 0 {
			t.Errorf("%d loads of what had not changed", n)
		}

		certstest.Write(t, filepath.Join(dir, "b.pem"), certstest.PEM(b.cert))
		wantNotListed(t, "no configured CA", src, ekB)
		after(31 * time.Second)
		wantListed(t, src, ekB)
		if err := os.Remove(filepath.Join(dir, "a.pem")); err != nil {
			t.Fatal(err)
		}
		after(31 * time.Second)
		wantNotListed(t, "no configured CA", src, ekA)
		certstest.Write(t, filepath.Join(dir, ".hidden"), certstest.PEM(a.cert))
		after(10 * time.Minute)
		if n := refreshes(); n != 2 {
			t.Errorf("%d refreshes, want 2", n)
		}
	})
}

// Kubernetes changes a mounted ConfigMap by one swap of a link; every CA of the
// old one must go.
func TestRunFollowsAConfigMap(t *testing.T) {
	dir := t.TempDir()
	a, b := newRoot(t, "A"), newRoot(t, "B")
	ekA, ekB := a.ek(t), b.ek(t)
	certstest.Write(t, filepath.Join(mkdir(t, filepath.Join(dir, "..1")), "ca.pem"), certstest.PEM(a.cert))
	certstest.Write(t, filepath.Join(mkdir(t, filepath.Join(dir, "..2")), "ca.pem"), certstest.PEM(b.cert))
	link(t, "..1", filepath.Join(dir, "..data"))
	link(t, "..data/ca.pem", filepath.Join(dir, "ca.pem"))
	synctest.Test(t, func(t *testing.T) {
		src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir, PollInterval: time.Second}})
		_, stop := run(t, src)
		defer stop()
		if w := src.Status().Warnings; len(w) != 0 {
			t.Errorf("warnings: %q", w)
		}
		wantListed(t, src, ekA)
		link(t, "..2", filepath.Join(dir, "..data_tmp"))
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		after(2 * time.Second)
		wantListed(t, src, ekB)
		wantNotListed(t, "no configured CA", src, ekA)
	})
}

// A mount that goes away takes no machine with it; when it is back, what has
// changed meanwhile is served.
func TestRunKeepsTheLastGoodSet(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cas")
	a, b := newRoot(t, "A"), newRoot(t, "B")
	ekA, ekB := a.ek(t), b.ek(t)
	certstest.Write(t, filepath.Join(mkdir(t, dir), "ca.pem"), certstest.PEM(a.cert))
	synctest.Test(t, func(t *testing.T) {
		src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
		loaded := src.Status().Loaded
		refreshes, stop := run(t, src)
		defer stop()
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		after(95 * time.Second)
		if n := refreshes(); n != 3 {
			t.Errorf("%d refreshes in 3 intervals without the folder, want one each", n)
		}
		wantListed(t, src, ekA)
		if !src.Status().Loaded.Equal(loaded) {
			t.Error("Status says that a set was loaded")
		}
		mkdir(t, dir)
		after(30 * time.Second)
		wantListed(t, src, ekA) // an empty folder is no set
		certstest.Write(t, filepath.Join(dir, "ca.pem"), certstest.PEM(b.cert))
		after(30 * time.Second)
		wantListed(t, src, ekB)
		wantNotListed(t, "no configured CA", src, ekA)
		if !src.Status().Loaded.After(loaded) {
			t.Error("Status does not say that a set was loaded")
		}
	})
}

// A server that starts before its CAs are there serves once they are.
func TestRunUntilTheFirstSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	root := newRoot(t, "Root")
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t, ekca.Config{Config: truststore.Config{CAPath: path}})
		_, stop := run(t, src)
		defer stop()
		after(time.Minute)
		certstest.Write(t, path, certstest.PEM(root.cert))
		after(30 * time.Second)
		wantListed(t, src, root.ek(t))
	})
}

// A file that is written in place is half there for a moment. That moment takes
// its CAs from nobody, and stops no change to other files.
func TestTornFileKeepsWhatItHeld(t *testing.T) {
	dir := t.TempDir()
	a, b, c := newRoot(t, "A"), newRoot(t, "B"), newRoot(t, "C")
	torn, other := filepath.Join(dir, "torn.pem"), filepath.Join(dir, "other.pem")
	certstest.Write(t, torn, certstest.PEM(a.cert, b.cert))
	certstest.Write(t, other, certstest.PEM(c.cert))
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
	whole := certstest.PEM(b.cert, c.cert)
	for _, part := range [][]byte{nil, whole[:100], whole[:len(whole)-60]} {
		certstest.Write(t, torn, part)
		if err := src.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantListed(t, src, a.ek(t))
		wantListed(t, src, b.ek(t))
		wantWarning(t, src.Status().Warnings, `/torn.pem": `, "what it held before stays in use")
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := src.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNotListed(t, "no configured CA", src, c.ek(t))
	certstest.Write(t, torn, whole)
	if err := src.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNotListed(t, "no configured CA", src, a.ek(t))
	wantListed(t, src, c.ek(t))
	if w := src.Status().Warnings; len(w) != 0 {
		t.Errorf("warnings: %q", w)
	}
	certstest.Write(t, torn, []byte("-----BEGIN CERT"))
	certstest.Write(t, other, certstest.PEM(a.cert))
	if err := os.Remove(torn); err != nil {
		t.Fatal(err)
	}
	if err := src.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNotListed(t, "no configured CA", src, c.ek(t))
}

// What has never been whole serves nothing, whatever stood at another path.
func TestTornFileFromTheStart(t *testing.T) {
	dir := t.TempDir()
	a, b := newRoot(t, "A"), newRoot(t, "B")
	certstest.Write(t, filepath.Join(dir, "a.pem"), certstest.PEM(a.cert))
	certstest.Write(t, filepath.Join(dir, "b.pem"), certstest.PEM(b.cert, a.cert)[:len(certstest.PEM(b.cert))+20])
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
	wantListed(t, src, a.ek(t))
	wantNotListed(t, "no configured CA", src, b.ek(t))
	wantWarning(t, src.Status().Warnings, `/b.pem": is damaged`)
}

// A Load that has been told to stop changes nothing.
func TestLoadStopsWithItsContext(t *testing.T) {
	root := newRoot(t, "Root")
	src := newSource(t, ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, root.cert)}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := src.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Load = %v", err)
	}
	if _, err := src.Check(t.Context(), evidence(root.ek(t))); err == nil {
		t.Error("a source that has loaded nothing has answered")
	}
}

// What Status returns is the caller's.
func TestStatusIsNotShared(t *testing.T) {
	dir := t.TempDir()
	certstest.Write(t, filepath.Join(dir, "a.pem"), certstest.PEM(newRoot(t, "A").cert))
	certstest.Write(t, filepath.Join(dir, "README"), nil)
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
	src.Status().Warnings[0] = "forged"
	if w := src.Status().Warnings; len(w) != 1 || strings.Contains(w[0], "forged") {
		t.Errorf("warnings: %q", w)
	}
	var _ interface {
		sources.Loader
		sources.Watcher
		sources.Reporter
	} = src
}

// TestStatusSaysHowOldItIs: an operator's alert on authorities that cannot be
// read any more stands on this: files that have not changed are as good as new,
// and files that are not there are not.
func TestStatusSaysHowOldItIs(t *testing.T) {
	dir := t.TempDir()
	certstest.Write(t, filepath.Join(dir, "ca.pem"), certstest.PEM(newRoot(t, "A").cert))
	synctest.Test(t, func(t *testing.T) {
		src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir, PollInterval: time.Minute}})
		_, stop := run(t, src)
		defer stop()
		begun := time.Now()
		want := func(after time.Duration) {
			t.Helper()
			st := src.Status()
			if !st.Loaded.Equal(begun) || !st.Confirmed.Equal(begun.Add(after)) {
				t.Errorf("loaded %v, confirmed %v, want %v later", st.Loaded, st.Confirmed, after)
			}
		}
		want(0)
		after(10*time.Minute + time.Second)
		want(10 * time.Minute)
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Minute)
		want(10 * time.Minute)
	})
}
