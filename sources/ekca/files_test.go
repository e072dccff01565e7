package ekca_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

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

// A folder as operators really have one: what is bad in it is named, and what is
// good serves.
func TestFolderWithAllSortsOfThings(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	good, der, linked := newRoot(t, "Good"), newRoot(t, "DER"), newRoot(t, "Linked")
	old := newRoot(t, "Old", func(c *x509.Certificate) { c.NotAfter = today().AddDate(0, 0, -1) })
	hidden, below := newRoot(t, "Hidden"), newRoot(t, "Below")

	write(t, in("good.pem"), pemOf(good.cert))
	write(t, in("der.cer"), der.cert.Raw)
	link(t, write(t, filepath.Join(elsewhere, "linked"), pemOf(linked.cert)), in("linked.pem"))
	write(t, in("README"), []byte("CAs of our vendors\n"))
	write(t, in("empty"), nil)
	write(t, in("old.pem"), pemOf(old.cert))
	write(t, in("z-again.pem"), pemOf(good.cert))
	write(t, in("garbage.pem"), block("CERTIFICATE", []byte("garbage")...))
	write(t, in("garbage.der"), []byte("0garbage"))
	link(t, in("nowhere"), in("dangling"))
	write(t, filepath.Join(mkdir(t, in("folder")), "below.pem"), pemOf(below.cert))
	write(t, filepath.Join(mkdir(t, in(".git")), "hidden.pem"), pemOf(hidden.cert))
	write(t, in(".nfs0001"), pemOf(hidden.cert))
	write(t, filepath.Join(mkdir(t, in("..2026_06_01")), "hidden.pem"), pemOf(hidden.cert))
	link(t, "..2026_06_01", in("..data"))
	if err := syscall.Mkfifo(in("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}

	src := load(t, ekca.Config{CAPath: dir})
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

// Where nothing can be used, the operator reads why, and nothing is served.
func TestNothingUsable(t *testing.T) {
	root := newRoot(t, "Root")
	old := newRoot(t, "Old", func(c *x509.Certificate) { c.NotAfter = today().AddDate(0, 0, -1) })
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"missing":       {"/does/not/exist", "no such file"},
		"empty folder":  {t.TempDir(), "is empty"},
		"only a README": {write(t, filepath.Join(t.TempDir(), "README"), []byte("hello")), "contains no certificate"},
		"only expired":  {caFile(t, old.cert), "has expired on"},
		"only an EK":    {caFile(t, root.ek(t)), "is not a CA certificate"},
		"only hidden":   {filepath.Dir(write(t, filepath.Join(t.TempDir(), ".ca.pem"), pemOf(root.cert))), "is empty"},
		"a FIFO":        {fifo, "is not a regular file"},
		"too large":     {huge(t), "is larger than 16777216 bytes"},
		"cut off":       {write(t, filepath.Join(t.TempDir(), "cut"), pemOf(root.cert)[:300]), "is damaged"},
		"only a request": {
			write(t, filepath.Join(t.TempDir(), "csr"), block("CERTIFICATE REQUEST")),
			`type "CERTIFICATE REQUEST"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := newSource(t, ekca.Config{CAPath: c.path})
			err := src.Refresh(t.Context())
			if err == nil {
				t.Fatal("Refresh succeeded")
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
	path := write(tb, filepath.Join(tb.TempDir(), "huge"), nil)
	if err := os.Truncate(path, 1<<30); err != nil {
		tb.Fatal(err)
	}
	return path
}

// What the storage cannot read is not "no CA": the last good set stays, and the
// error says why. /proc has a file that answers EIO, and one that holds more than
// it says.
func TestUnreadableFile(t *testing.T) {
	for target, want := range map[string]string{
		"/proc/self/mem":    "input/output error",
		"/proc/self/status": "keep changing",
		"ca.pem":            "too many levels of symbolic links",
	} {
		dir := t.TempDir()
		root := newRoot(t, "Root")
		path := write(t, filepath.Join(dir, "ca.pem"), pemOf(root.cert))
		src := load(t, ekca.Config{CAPath: dir})
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "other.pem"), pemOf(newRoot(t, "Other").cert))
		link(t, target, path)
		err := src.Refresh(t.Context())
		if err == nil {
			t.Fatalf("Refresh of a link to %s succeeded", target)
		}
		wantText(t, err.Error(), want)
		wantListed(t, src, root.ek(t))
	}
}

// A mount that is not there is an empty folder, and no withdrawal of a vendor.
func TestOneBundleNotMounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mount")
	a, b := newRoot(t, "A"), newRoot(t, "B")
	write(t, filepath.Join(mkdir(t, dir), "a.pem"), pemOf(a.cert))
	src := load(t, ekca.Config{Bundles: map[string]string{"a": dir, "b": caFile(t, b.cert)}})
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	mkdir(t, dir)
	err := src.Refresh(t.Context())
	if err == nil {
		t.Fatal("Refresh succeeded")
	}
	wantText(t, err.Error(), "is empty: mount it")
	wantListed(t, src, a.ek(t))
}

// A vendor whose certificates have all expired may not stop the others.
func TestOneBundleWithoutUsableCA(t *testing.T) {
	good := newRoot(t, "Good")
	old := newRoot(t, "Old", func(c *x509.Certificate) { c.NotAfter = today().AddDate(0, 0, -1) })
	src := load(t, ekca.Config{Bundles: map[string]string{
		"good": caFile(t, good.cert), "old": caFile(t, old.cert),
	}})
	if got := wantListed(t, src, good.ek(t)).CAs; !slices.Equal(got, []string{"good"}) {
		t.Errorf("CAs = %q", got)
	}
	wantWarning(t, src.Status().Warnings, "has expired on")

	src = newSource(t, ekca.Config{Bundles: map[string]string{
		"good": caFile(t, good.cert), "gone": "/does/not/exist",
	}})
	if err := src.Refresh(t.Context()); err == nil {
		t.Error("a bundle whose path does not exist was taken for an empty one")
	}
}

// The same certificate in two bundles is no duplicate; twice in one it is.
func TestDuplicatesAcrossBundles(t *testing.T) {
	root := newRoot(t, "Root")
	src := load(t, ekca.Config{Bundles: map[string]string{
		"a": caFile(t, root.cert), "b": caFile(t, root.cert, root.cert),
	}})
	if got := src.Status(); got.Entries != 1 || len(got.Warnings) != 1 {
		t.Errorf("Status = %+v", got)
	}
	wantWarning(t, src.Status().Warnings, "certificate 2 is a duplicate")
}

// PEM files are written by hand and by many tools.
func TestPEMVariants(t *testing.T) {
	a, b := newRoot(t, "A"), newRoot(t, "B")
	both := pemOf(a.cert, b.cert)
	key, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	private := block("PRIVATE KEY", key...)
	for name, c := range map[string]struct {
		data    []byte
		entries int // 0 where nothing may be taken
		warning string
	}{
		"two":  {both, 2, ""},
		"CRLF": {bytes.ReplaceAll(both, []byte("\n"), []byte("\r\n")), 2, ""},
		"text between": {
			[]byte("# A\nCN=A\n" + string(pemOf(a.cert)) + "\n# B\n" + string(pemOf(b.cert)) + "end"),
			2, "",
		},
		"byte order mark": {slices.Concat([]byte("\ufeff"), both), 2, ""},
		"no last newline": {bytes.TrimSpace(both), 2, ""},
		"old type":        {bytes.ReplaceAll(both, []byte("CERTIFICATE"), []byte("X509 CERTIFICATE")), 2, ""},
		"private key":     {slices.Concat(both, private), 2, "contains a private key"},
		"revocation list": {slices.Concat(both, block("X509 CRL")), 2, `"X509 CRL"`},
		"one unparsable": {
			slices.Concat(pemOf(a.cert), block("CERTIFICATE", 0x30, 0), pemOf(b.cert)),
			2, "certificate 2 cannot be parsed",
		},
		"several in DER": {slices.Concat(a.cert.Raw, b.cert.Raw), 2, ""},

		"cut in the middle": {both[:len(both)*3/4], 0, "begins 2 PEM blocks, but only 1 are complete"},
		"cut in a line":     {slices.Concat(both[:len(both)-40], pemOf(a.cert)), 0, "is damaged"},
		"damaged base64":    {bytes.Replace(both, []byte("MII"), []byte("M!I"), 1), 0, "is damaged"},
		"end missing":       {bytes.Replace(both, []byte("-----END CERTIFICATE-----\n"), nil, 1), 0, "is damaged"},
		"DER cut off":       {a.cert.Raw[:len(a.cert.Raw)-1], 0, "no certificate in DER"},
		"DER and more":      {append(slices.Clone(a.cert.Raw), '\n'), 0, "no certificate in DER"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, always := t.TempDir(), newRoot(t, "Always")
			write(t, filepath.Join(dir, "always"), pemOf(always.cert))
			write(t, filepath.Join(dir, "file"), c.data)
			src := load(t, ekca.Config{CAPath: dir})
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
		path := write(t, filepath.Join(dir, strconv.Itoa(i)), nil)
		if err := os.Truncate(path, ekca.MaxFileSize); err != nil {
			t.Fatal(err)
		}
	}
	err := newSource(t, ekca.Config{CAPath: dir}).Refresh(t.Context())
	if err == nil {
		t.Fatal("Refresh succeeded")
	}
	wantText(t, err.Error(), "larger than 67108864 bytes together")
}

// So many certificates are no set of CAs.
func TestLimitOnCertificates(t *testing.T) {
	one := pemOf(newRoot(t, "A").cert)
	path := write(t, filepath.Join(t.TempDir(), "many.pem"), bytes.Repeat(one, ekca.MaxCertificates+1))
	err := newSource(t, ekca.Config{CAPath: path}).Refresh(t.Context())
	if err == nil {
		t.Fatal("Refresh succeeded")
	}
	wantText(t, err.Error(), "more than 10000 certificates")

	write(t, path, bytes.Repeat(one, 500))
	src := load(t, ekca.Config{CAPath: path})
	if w := src.Status().Warnings; len(w) != 101 || w[100] != "and 399 more" {
		t.Errorf("%d warnings, the last %q", len(w), w[len(w)-1])
	}
}

// Of a path that is a link the file is read that it leads to.
func TestPathIsALink(t *testing.T) {
	root := newRoot(t, "Root")
	dir := t.TempDir()
	write(t, filepath.Join(mkdir(t, filepath.Join(dir, "real")), "ca.pem"), pemOf(root.cert))
	link(t, "real", filepath.Join(dir, "folder"))
	link(t, "real/ca.pem", filepath.Join(dir, "file"))
	for _, path := range []string{"folder", "file"} {
		wantListed(t, load(t, ekca.Config{CAPath: filepath.Join(dir, path)}), root.ek(t))
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
	ek := sign(t, template, root.cert, key.Public(), key)
	src := trusting(t, root)
	wantListed(t, src, ek)
	ev := evidence(ek)
	ev.EK = newKey(t).Public()
	if v, err := src.Check(t.Context(), ev); err == nil || v.Listed {
		t.Errorf("an elliptic-curve EK with the certificate of an RSA EK: %+v, %v", v, err)
	}
}
