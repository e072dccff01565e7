package ekca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

func link(tb testing.TB, target, path string) {
	tb.Helper()
	if err := os.Symlink(target, path); err != nil {
		tb.Fatal(err)
	}
}

func mkdir(tb testing.TB, path string) string {
	tb.Helper()
	if err := os.MkdirAll(path, 0o700); err != nil {
		tb.Fatal(err)
	}
	return path
}

// block is a PEM block.
func block(kind string, content ...byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content})
}

// wantWarning wants one warning that holds each of the texts.
func wantWarning(tb testing.TB, warnings []string, texts ...string) {
	tb.Helper()
	if !slices.ContainsFunc(warnings, func(w string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(w, text) })
	}) {
		tb.Errorf("no warning holds %q: %q", texts, warnings)
	}
}

// In a folder as operators really have it, bad files are named and good files are used.
func TestFolderWithAllSortsOfThings(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	good, der, linked := newRoot(t, "Good"), newRoot(t, "DER"), newRoot(t, "Linked")
	old := newRoot(t, "Old", func(c *x509.Certificate) { c.NotAfter = certstest.Today().AddDate(0, 0, -1) })
	hidden, below := newRoot(t, "Hidden"), newRoot(t, "Below")

	certstest.Write(t, in("good.pem"), certstest.PEM(good.cert))
	certstest.Write(t, in("der.cer"), der.cert.Raw)
	link(t, certstest.Write(t, filepath.Join(elsewhere, "linked"), certstest.PEM(linked.cert)), in("linked.pem"))
	certstest.Write(t, in("README"), []byte("CAs of our vendors\n"))
	certstest.Write(t, in("empty"), nil)
	certstest.Write(t, in("old.pem"), certstest.PEM(old.cert))
	certstest.Write(t, in("z-again.pem"), certstest.PEM(good.cert))
	certstest.Write(t, in("garbage.pem"), block("CERTIFICATE", []byte("garbage")...))
	certstest.Write(t, in("garbage.der"), []byte("0garbage"))
	link(t, in("nowhere"), in("dangling"))
	certstest.Write(t, filepath.Join(mkdir(t, in("folder")), "below.pem"), certstest.PEM(below.cert))
	certstest.Write(t, filepath.Join(mkdir(t, in(".git")), "hidden.pem"), certstest.PEM(hidden.cert))
	certstest.Write(t, in(".nfs0001"), certstest.PEM(hidden.cert))
	certstest.Write(t, filepath.Join(mkdir(t, in("..2026_06_01")), "hidden.pem"), certstest.PEM(hidden.cert))
	link(t, "..2026_06_01", in("..data"))
	if err := syscall.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}

	src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
	status := src.Status()
	if status.Entries != 3 || len(status.Warnings) != 9 {
		t.Errorf("%d entries, %d warnings: %q", status.Entries, len(status.Warnings), status.Warnings)
	}
	for _, w := range [][]string{
		{`/README": contains no certificate`},
		{`/empty": contains no certificate`},
		{`/old.pem": certificate 1 has expired on`, "CN=Old"},
		{`/z-again.pem": certificate 1 is a duplicate`, "CN=Good"},
		{`/garbage.pem": certificate 1 cannot be parsed`},
		{`/garbage.der": contains no certificate in DER`},
		{`/dangling": is a dangling link`},
		{`/folder": is a subfolder`},
		{`/fifo": is not a regular file`},
	} {
		wantWarning(t, status.Warnings, w...)
	}
	for _, ca := range []*authority{good, der, linked} {
		wantListed(t, src, ca.ek(t))
	}
	for _, ca := range []*authority{old, hidden, below} {
		wantNotListed(t, "no configured CA", src, ca.ek(t))
	}
}

// If nothing can be used, the operator reads why, and no state is loaded.
func TestNothingUsable(t *testing.T) {
	root := newRoot(t, "Root")
	old := newRoot(t, "Old", func(c *x509.Certificate) { c.NotAfter = certstest.Today().AddDate(0, 0, -1) })
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"missing":       {"/does/not/exist", "no such file"},
		"empty folder":  {t.TempDir(), "is empty"},
		"only a README": {certstest.Write(t, filepath.Join(t.TempDir(), "README"), []byte("hello")), "contains no certificate"},
		"only expired":  {certstest.File(t, old.cert), "has expired on"},
		"only an EK":    {certstest.File(t, root.ek(t)), "is not a CA certificate"},
		"only hidden":   {filepath.Dir(certstest.Write(t, filepath.Join(t.TempDir(), ".ca.pem"), certstest.PEM(root.cert))), "is empty"},
		"a FIFO":        {fifo, "is not a regular file"},
		"too large":     {huge(t), "is larger than 16777216 bytes"},
		"cut off":       {certstest.Write(t, filepath.Join(t.TempDir(), "cut"), certstest.PEM(root.cert)[:300]), "is damaged"},
		"only a request": {
			certstest.Write(t, filepath.Join(t.TempDir(), "csr"), block("CERTIFICATE REQUEST")),
			`type "CERTIFICATE REQUEST"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource(t, ekca.Config{Config: truststore.Config{CAPath: c.path}})
			err := src.Load(t.Context())
			if err == nil {
				t.Fatal("Load succeeded")
			}
			wantText(t, err.Error(), c.want)
			if v, err := src.Check(t.Context(), evidence(root.ek(t))); err == nil || v.Listed {
				t.Errorf("Check = %+v, %v", v, err)
			}
		})
	}
}

// huge returns the path of a file of 1 GiB, which takes no room.
func huge(tb testing.TB) string {
	tb.Helper()
	path := certstest.Write(tb, filepath.Join(tb.TempDir(), "huge"), nil)
	if err := os.Truncate(path, 1<<30); err != nil {
		tb.Fatal(err)
	}
	return path
}

// unreadable has what cannot be read at a path, by what is said of it. /proc has a file
// that answers EIO, and one that holds more than it says.
func unreadable() map[string]func(tb testing.TB, path string) {
	linked := func(target string) func(testing.TB, string) {
		return func(tb testing.TB, path string) { link(tb, target, path) }
	}
	all := map[string]func(tb testing.TB, path string){
		"input/output error":                linked("/proc/self/mem"),
		"changed while it was read":         linked("/proc/self/status"),
		"too many levels of symbolic links": linked("ca.pem"),
	}
	if os.Getuid() != 0 {
		all["permission denied"] = func(tb testing.TB, path string) {
			certstest.Write(tb, path, []byte("secret"))
			if err := os.Chmod(path, 0); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return all
}

// A read error does not mean "no CA", and does not stop the Load: only that file keeps what it
// held, and a CA whose file was removed in the meantime is dropped. Otherwise that CA would be
// trusted for as long as somebody leaves an unreadable file there.
func TestUnreadableFile(t *testing.T) {
	for why, put := range unreadable() {
		dir := t.TempDir()
		held, gone, added := newRoot(t, "Held"), newRoot(t, "Gone"), newRoot(t, "Added")
		path := certstest.Write(t, filepath.Join(dir, "ca.pem"), certstest.PEM(held.cert))
		withdrawn := certstest.Write(t, filepath.Join(dir, "gone.pem"), certstest.PEM(gone.cert))
		synctest.Test(t, func(t *testing.T) {
			src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
			refreshes, stop := run(t, src)
			defer stop()
			for _, p := range []string{path, withdrawn} {
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
			}
			put(t, path)
			certstest.Write(t, filepath.Join(dir, "new.pem"), certstest.PEM(added.cert))
			after(31 * time.Second)
			wantNotListed(t, "no configured CA", src, gone.ek(t))
			wantListed(t, src, held.ek(t))
			wantListed(t, src, added.ek(t))
			wantWarning(t, src.Status().Warnings, `/ca.pem": `, why, "what it held before stays in use")
			after(10 * time.Minute)
			if n := refreshes(); n != 1 {
				t.Errorf("%s: %d refreshes of what had not changed", why, n)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			after(31 * time.Second)
			wantNotListed(t, "no configured CA", src, held.ek(t))
			put(t, path)
			after(31 * time.Second)
			wantListed(t, src, added.ek(t))
			wantWarning(t, src.Status().Warnings, `/ca.pem": `, why, "it is left out")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			certstest.Write(t, path, certstest.PEM(held.cert))
			after(31 * time.Second)
			wantListed(t, src, held.ek(t))
			if w := src.Status().Warnings; len(w) != 0 {
				t.Errorf("%s: warnings: %q", why, w)
			}
		})
	}
}

// One file that cannot be read does not keep a server from starting, unless it is the only one at a
// path: then it is not known what that path trusts.
func TestUnreadableFileFromTheStart(t *testing.T) {
	root, other := newRoot(t, "Root"), newRoot(t, "Other")
	for why, put := range unreadable() {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "ca.pem"))
		for _, cfg := range []ekca.Config{
			{Config: truststore.Config{CAPath: dir}},
			{Config: truststore.Config{CAPath: filepath.Join(dir, "ca.pem")}},
			{Config: truststore.Config{Bundles: map[string]string{"a": dir, "b": certstest.File(t, root.cert)}}},
			{Config: truststore.Config{Bundles: map[string]string{"a": filepath.Join(dir, "ca.pem"), "b": certstest.File(t, root.cert)}}},
		} {
			src := newSource(t, cfg)
			err := src.Load(t.Context())
			if err == nil {
				t.Fatalf("%s: %+v was loaded", why, cfg)
			}
			wantText(t, err.Error(), why)
			if v, err := src.Check(t.Context(), evidence(root.ek(t))); err == nil || v.Listed {
				t.Errorf("Check = %+v, %v", v, err)
			}
		}
		certstest.Write(t, filepath.Join(dir, "root.pem"), certstest.PEM(root.cert))
		src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
		wantListed(t, src, root.ek(t))
		wantNotListed(t, "no configured CA", src, other.ek(t))
		wantWarning(t, src.Status().Warnings, `/ca.pem": `, why, "it is left out")
	}
}

// A path that cannot be read keeps what it held, and does not affect others: a CA that is withdrawn
// from another bundle is dropped. Load fails for as long as that lasts, and what is used does not
// count as confirmed.
func TestUnreadablePathConcernsNoOther(t *testing.T) {
	ruin := map[string]func(t *testing.T, dir, file string){
		"is empty": func(t *testing.T, dir, _ string) {
			t.Helper()
			if err := os.Rename(dir, dir+".away"); err != nil {
				t.Fatal(err)
			}
			mkdir(t, dir)
		},
		"no such file": func(t *testing.T, _, file string) {
			t.Helper()
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
		"is not a regular file": func(t *testing.T, _, file string) {
			t.Helper()
			if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for why, change := range ruin {
		base := t.TempDir()
		a, b, c, d := newRoot(t, "A"), newRoot(t, "B"), newRoot(t, "C"), newRoot(t, "D")
		first, last := mkdir(t, filepath.Join(base, "first")), mkdir(t, filepath.Join(base, "last"))
		certstest.Write(t, filepath.Join(first, "a.pem"), certstest.PEM(a.cert))
		file := certstest.Write(t, filepath.Join(base, "b.pem"), certstest.PEM(b.cert))
		gone := certstest.Write(t, filepath.Join(last, "c.pem"), certstest.PEM(c.cert))
		certstest.Write(t, filepath.Join(last, "d.pem"), certstest.PEM(d.cert))
		synctest.Test(t, func(t *testing.T) {
			src := load(t, ekca.Config{Config: truststore.Config{Bundles: map[string]string{"a": first, "b": file, "c": last}}})
			begun := src.Status().Confirmed
			_, stop := run(t, src)
			defer stop()
			change(t, first, file)
			if err := os.Remove(gone); err != nil {
				t.Fatal(err)
			}
			after(31 * time.Second)
			loaded := src.Status().Loaded
			after(10 * time.Minute)
			for _, ca := range []*authority{a, b, d} {
				wantListed(t, src, ca.ek(t))
			}
			wantNotListed(t, "no configured CA", src, c.ek(t))
			if st := src.Status(); !st.Confirmed.Equal(begun) || !st.Loaded.Equal(loaded) {
				t.Errorf("%s: confirmed %v, loaded %v", why, st.Confirmed, st.Loaded)
			}
			err := src.Load(t.Context())
			if err == nil {
				t.Fatalf("%s: Load succeeded", why)
			}
			wantText(t, err.Error(), why)
		})
	}
}

// A missing mount looks like an empty folder, and does not withdraw a vendor.
func TestOneBundleNotMounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mount")
	a, b := newRoot(t, "A"), newRoot(t, "B")
	certstest.Write(t, filepath.Join(mkdir(t, dir), "a.pem"), certstest.PEM(a.cert))
	src := load(t, ekca.Config{Config: truststore.Config{Bundles: map[string]string{"a": dir, "b": certstest.File(t, b.cert)}}})
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	mkdir(t, dir)
	err := src.Load(t.Context())
	if err == nil {
		t.Fatal("Load succeeded")
	}
	wantText(t, err.Error(), "is empty: mount it")
	wantListed(t, src, a.ek(t))
}

// A chart creates a CA folder even for users who have no CA: if the folder may be empty, nobody is
// listed, and there is a warning. A folder that has lost its CAs is still taken for a missing
// mount, and keeps what it held.
func TestFolderThatMayBeEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mount")
	mkdir(t, dir)
	a := newRoot(t, "A")
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir, MayBeEmpty: true}})
	wantNotListed(t, "no configured CA", src, a.ek(t))
	wantWarning(t, src.Status().Warnings, dir, "is an empty folder")
	if st := src.Status(); st.Entries != 0 || st.Confirmed.IsZero() {
		t.Errorf("the status is %+v", st)
	}

	ruined := certstest.Write(t, filepath.Join(dir, "a.pem"), []byte("garbage"))
	if err := src.Load(t.Context()); err == nil {
		t.Error("a folder without a usable CA certificate was loaded")
	}
	wantNotListed(t, "no configured CA", src, a.ek(t))
	certstest.Write(t, ruined, certstest.PEM(a.cert))
	if err := src.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantListed(t, src, a.ek(t))
	if warnings := src.Status().Warnings; len(warnings) > 0 {
		t.Errorf("there are warnings: %q", warnings)
	}

	if err := os.Remove(ruined); err != nil {
		t.Fatal(err)
	}
	err := src.Load(t.Context())
	if err == nil {
		t.Fatal("an emptied folder was loaded")
	}
	wantText(t, err.Error(), "is empty: mount it")
	wantListed(t, src, a.ek(t))
}

// A vendor whose certificates have all expired may not stop the others.
func TestOneBundleWithoutUsableCA(t *testing.T) {
	good := newRoot(t, "Good")
	old := newRoot(t, "Old", func(c *x509.Certificate) { c.NotAfter = certstest.Today().AddDate(0, 0, -1) })
	src := load(t, ekca.Config{
		Config: truststore.Config{
			Bundles: map[string]string{
				"good": certstest.File(t, good.cert), "old": certstest.File(t, old.cert),
			},
		},
	})
	if got := wantListed(t, src, good.ek(t)).CAs; !slices.Equal(got, []string{"good"}) {
		t.Errorf("CAs = %q", got)
	}
	wantWarning(t, src.Status().Warnings, "has expired on")

	src = newSource(t, ekca.Config{
		Config: truststore.Config{
			Bundles: map[string]string{
				"good": certstest.File(t, good.cert), "gone": "/does/not/exist",
			},
		},
	})
	if err := src.Load(t.Context()); err == nil {
		t.Error("a bundle whose path does not exist was taken for an empty one")
	}
}

// The same certificate in two bundles is no duplicate; twice in one it is.
func TestDuplicatesAcrossBundles(t *testing.T) {
	root := newRoot(t, "Root")
	src := load(t, ekca.Config{
		Config: truststore.Config{
			Bundles: map[string]string{
				"a": certstest.File(t, root.cert), "b": certstest.File(t, root.cert, root.cert),
			},
		},
	})
	if got := src.Status(); got.Entries != 1 || len(got.Warnings) != 1 {
		t.Errorf("Status = %+v", got)
	}
	wantWarning(t, src.Status().Warnings, "certificate 2 is a duplicate")
}

// CA files are written by hand and by many tools, and vendors publish their CAs in many forms:
// whatever is intact in a file is used, and the rest is reported.
func TestCAFileVariants(t *testing.T) {
	a, b := newRoot(t, "A"), newRoot(t, "B")
	both := certstest.PEM(a.cert, b.cert)
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, bundle := block("PRIVATE KEY", key...), bundleOfCerts(false, a.cert, b.cert)
	for name, c := range map[string]struct {
		data    []byte
		entries int // 0 where nothing may be taken
		warning string
	}{
		"two":  {both, 2, ""},
		"CRLF": {bytes.ReplaceAll(both, []byte("\n"), []byte("\r\n")), 2, ""},
		"text between": {
			[]byte("# A\nCN=A\n" + string(certstest.PEM(a.cert)) + "\n# B\n" + string(certstest.PEM(b.cert)) + "end"),
			2, "",
		},
		"byte order mark": {slices.Concat([]byte("\ufeff"), both), 2, ""},
		"no last newline": {bytes.TrimSpace(both), 2, ""},
		"old type":        {bytes.ReplaceAll(both, []byte("CERTIFICATE"), []byte("X509 CERTIFICATE")), 2, ""},
		"private key":     {slices.Concat(both, private), 2, "contains a private key"},
		"revocation list": {slices.Concat(both, block("X509 CRL")), 2, `"X509 CRL"`},
		"one unparsable": {
			slices.Concat(certstest.PEM(a.cert), block("CERTIFICATE", 0x30, 0), certstest.PEM(b.cert)),
			2, "certificate 2 cannot be parsed",
		},
		"several in DER": {slices.Concat(a.cert.Raw, b.cert.Raw), 2, ""},

		"line end behind DER": {slices.Concat(a.cert.Raw, []byte("\n")), 1, ""},
		"padded with ff":      {slices.Concat(a.cert.Raw, bytes.Repeat([]byte{0xff}, 300)), 1, ""},
		"padded with zeros":   {slices.Concat(bundle, make([]byte, 300)), 2, ""},
		"lines between DER":   {slices.Concat(a.cert.Raw, []byte("\r\n"), b.cert.Raw, []byte("\r\n")), 2, ""},
		"text behind DER":     {slices.Concat(a.cert.Raw, []byte("\nroot")), 1, "the last 4 bytes, behind certificate 1,"},
		"unparsable in DER":   {slices.Concat(a.cert.Raw, []byte{0x30, 2, 5, 0}), 1, "certificate 2 cannot be parsed"},
		"PKCS #7":             {bundle, 2, ""},
		"PKCS #7 in BER":      {bundleOfCerts(true, a.cert, b.cert), 2, ""},
		"PKCS #7 in PEM":      {block("PKCS7", bundle...), 2, ""},
		"PKCS #7 as CMS":      {slices.Concat(block("CMS", bundleOfCerts(false, a.cert)...), certstest.PEM(b.cert)), 2, ""},
		"PKCS #7 and DER":     {slices.Concat(bundleOfCerts(false, a.cert), b.cert.Raw), 2, ""},
		"no bundle in PEM": {
			slices.Concat(both, block("PKCS7", a.cert.Raw...)),
			2, "contains a PKCS #7 bundle that cannot be read",
		},

		"cut in the middle": {both[:len(both)*3/4], 0, "begins 2 PEM blocks, but only 1 are complete"},
		"cut in a line":     {slices.Concat(both[:len(both)-40], certstest.PEM(a.cert)), 0, "is damaged"},
		"damaged base64":    {bytes.Replace(both, []byte("MII"), []byte("M!I"), 1), 0, "is damaged"},
		"end missing":       {bytes.Replace(both, []byte("-----END CERTIFICATE-----\n"), nil, 1), 0, "is damaged"},
		"DER cut off":       {a.cert.Raw[:len(a.cert.Raw)-1], 0, "no certificate in DER"},
		"second cut off":    {slices.Concat(a.cert.Raw, b.cert.Raw[:100]), 0, "no certificate in DER"},
		"bundle cut off":    {bundle[:len(bundle)-1], 0, "no certificate in DER"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, always := t.TempDir(), newRoot(t, "Always")
			certstest.Write(t, filepath.Join(dir, "always"), certstest.PEM(always.cert))
			certstest.Write(t, filepath.Join(dir, "file"), c.data)
			src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
			status := src.Status()
			if status.Entries != c.entries+1 {
				t.Errorf("%d entries, want %d and 1", status.Entries, c.entries)
			}
			if c.warning != "" {
				wantWarning(t, status.Warnings, `/file": `, c.warning)
			} else if len(status.Warnings) > 0 {
				t.Errorf("warnings: %q", status.Warnings)
			}
		})
	}
}

// Large files, each within its limit, may not fill the memory together.
func TestLimitOnTheSizeOfAllFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		path := certstest.Write(t, filepath.Join(dir, strconv.Itoa(i)), nil)
		if err := os.Truncate(path, ekca.MaxFileSize); err != nil {
			t.Fatal(err)
		}
	}
	err := newSource(t, ekca.Config{Config: truststore.Config{CAPath: dir}}).Load(t.Context())
	if err == nil {
		t.Fatal("Load succeeded")
	}
	wantText(t, err.Error(), "larger than 67108864 bytes together")
}

// Too many certificates are refused.
func TestLimitOnCertificates(t *testing.T) {
	one := certstest.PEM(newRoot(t, "A").cert)
	path := certstest.Write(t, filepath.Join(t.TempDir(), "many.pem"), bytes.Repeat(one, ekca.MaxCertificates+1))
	err := newSource(t, ekca.Config{Config: truststore.Config{CAPath: path}}).Load(t.Context())
	if err == nil {
		t.Fatal("Load succeeded")
	}
	wantText(t, err.Error(), "more than 10000 certificates")

	certstest.Write(t, path, bytes.Repeat(one, 500))
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: path}})
	if w := src.Status().Warnings; len(w) != 101 || w[100] != "and 399 more" {
		t.Errorf("%d warnings, the last %q", len(w), w[len(w)-1])
	}
}

// If a path is a symbolic link, the file that it leads to is read.
func TestPathIsALink(t *testing.T) {
	root := newRoot(t, "Root")
	dir := t.TempDir()
	certstest.Write(t, filepath.Join(mkdir(t, filepath.Join(dir, "real")), "ca.pem"), certstest.PEM(root.cert))
	link(t, "real", filepath.Join(dir, "folder"))
	link(t, "real/ca.pem", filepath.Join(dir, "file"))
	for _, path := range []string{"folder", "file"} {
		wantListed(t, load(t, ekca.Config{Config: truststore.Config{CAPath: filepath.Join(dir, path)}}), root.ek(t))
	}
}

// A certificate of an RSA EK by an RSA CA, as most are.
func TestRSA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := newRootWithKey(t, "Root", key)
	template := ekTemplate(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	ek := certstest.Sign(t, template, root.cert, key.Public(), key)
	src := trusting(t, root)
	wantListed(t, src, ek)
	ev := evidence(ek)
	ev.EK = certstest.NewKey(t).Public()
	if v, err := src.Check(t.Context(), ev); err == nil || v.Listed {
		t.Errorf("an elliptic-curve EK with the certificate of an RSA EK: %+v, %v", v, err)
	}
}

// Vendors publish CAs for AK certificates beside those for EKs. Such a CA is no anchor for EKs even
// if it is in the folder of CAs: it is left out, with a warning.
func TestCAForAttestationKeysAlone(t *testing.T) {
	const ekCertificate, platform, akCertificate = 1, 2, 3 // tcg-kp
	usage := func(anyUsage bool, tcg ...int) edit {
		return func(c *x509.Certificate) {
			for _, last := range tcg {
				c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, asn1.ObjectIdentifier{2, 23, 133, 8, last})
			}
			if anyUsage {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
			}
		}
	}
	for name, c := range map[string]struct {
		usage edit
		in    bool
	}{
		"none":            {usage(false), true},
		"EKs":             {usage(false, ekCertificate), true},
		"EKs and AKs":     {usage(false, akCertificate, ekCertificate), true},
		"AKs and any":     {usage(true, akCertificate), true},
		"platforms":       {usage(false, platform), true}, // the operator has said what it is for
		"AKs":             {usage(false, akCertificate), false},
		"AKs, platforms":  {usage(false, platform, akCertificate), false},
		"AKs and clients": {edits(usage(false, akCertificate), clientAuth), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, ca := t.TempDir(), newRoot(t, "CA", c.usage)
			certstest.Write(t, filepath.Join(dir, "always.pem"), certstest.PEM(newRoot(t, "Always").cert))
			certstest.Write(t, filepath.Join(dir, "ca.pem"), certstest.PEM(ca.cert))
			src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
			if c.in {
				wantListed(t, src, ca.ek(t))
				return
			}
			wantNotListed(t, "no configured CA", src, ca.ek(t))
			wantWarning(t, src.Status().Warnings, `/ca.pem": certificate 1`, "for attestation keys alone", "CN=CA")
		})
	}
}

func edits(all ...edit) edit {
	return func(c *x509.Certificate) {
		for _, e := range all {
			e(c)
		}
	}
}

func clientAuth(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

// AMD publishes an intermediate with a line break after its DER. It is accepted in a folder of CAs.
// STM's, with a serial number that X.690 forbids, is named as one that cannot be parsed.
func TestOddRealCAFiles(t *testing.T) {
	dir := filepath.Join(attestortest.MoreFieldCertificates(t), "odd")
	src := load(t, ekca.Config{Config: truststore.Config{CAPath: dir}})
	status := src.Status()
	if status.Entries != 1 || len(status.Warnings) != 1 {
		t.Errorf("%d entries, warnings %q", status.Entries, status.Warnings)
	}
	wantWarning(t, status.Warnings, "malformed-serial", "certificate 1 cannot be parsed")
}
