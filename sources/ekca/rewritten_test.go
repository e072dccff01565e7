package ekca_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// A CA is withdrawn by writing another into its file. It must be gone even where
// nothing but the content tells: certificates of one kind are of one size, a file
// system keeps times in steps, and a tool that copies may set them.
func TestRunReadsWhatLooksTheSame(t *testing.T) {
	a, b := newRoot(t, "A"), newRoot(t, "B")
	for len(b.cert.Raw) != len(a.cert.Raw) {
		b = newRoot(t, "B")
	}
	ekA, ekB := a.ek(t), b.ek(t)
	for name, config := range map[string]func(file string) ekca.Config{
		"file": func(file string) ekca.Config { return ekca.Config{Config: truststore.Config{CAPath: file}} },
		"folder": func(file string) ekca.Config {
			return ekca.Config{Config: truststore.Config{CAPath: filepath.Dir(file)}}
		},
		"bundle": func(file string) ekca.Config {
			return ekca.Config{Config: truststore.Config{Bundles: map[string]string{"b": file}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			certstest.Write(t, filepath.Join(dir, ".README"), []byte("not looked at"))
			if name == "folder" {
				certstest.Write(t, filepath.Join(dir, "a"), []byte("no certificate"))
				link(t, "nowhere", filepath.Join(dir, "b"))
			}
			file := certstest.Write(t, filepath.Join(dir, "ca.pem"), certstest.PEM(a.cert))
			synctest.Test(t, func(t *testing.T) {
				src := load(t, config(file))
				refreshes, stop := run(t, src)
				defer stop()
				wantListed(t, src, ekA)
				rewrite(t, file, b.cert)
				after(31 * time.Second)
				wantListed(t, src, ekB)
				wantNotListed(t, "no configured CA", src, ekA)
				after(10 * time.Minute)
				if n := refreshes(); n != 1 {
					t.Errorf("%d refreshes of one change", n)
				}
			})
		})
	}
}

// rewrite writes a certificate into a file in place and leaves its time as it was.
func rewrite(t *testing.T, file string, cert *x509.Certificate) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	certstest.Write(t, file, certstest.PEM(cert))
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
}
