package smallfile_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

const mark = "\ufeff"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newCA returns a certificate and its key in PEM.
func newCA(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", secret)
}

// If a certificate in a CA file is left out, a server that is right looks like an impostor, and
// nothing says which of the two is wrong: the byte order mark of an editor used to hide the
// first of two CAs. Every block is read, or the file is refused.
func TestCertPoolReadsAllOrNothing(t *testing.T) {
	one, key := newCA(t, "one")
	two, _ := newCA(t, "two")
	lines := strings.SplitAfter(one, "\n")
	cut := strings.Join(lines[:len(lines)/2], "")
	path := filepath.Join(t.TempDir(), "ca.pem")
	for name, test := range map[string]struct {
		content string
		want    int
		err     string
	}{
		"two":                  {one + two, 2, ""},
		"byte order mark":      {mark + one + two, 2, ""},
		"text around":          {"# our CA\n" + one + "\n# the next\n" + two + "end\n", 2, ""},
		"CRLF":                 {strings.ReplaceAll(one+two, "\n", "\r\n"), 2, ""},
		"empty":                {"", 0, "there is no CA certificate"},
		"only a mark":          {mark, 0, "there is no CA certificate"},
		"text":                 {"to be done", 0, "there is no CA certificate"},
		"the first is cut":     {cut + two, 0, "is damaged: it begins 2 PEM blocks, but only"},
		"the last is cut":      {one + cut, 0, "is damaged: it begins 2 PEM blocks, but only 1"},
		"without a beginning":  {one + strings.Join(lines[1:], ""), 0, "is damaged: it ends 2 PEM blocks but begins only 1"},
		"no line end between":  {strings.TrimSpace(one) + two, 0, "is damaged"},
		"a mark in the middle": {one + mark + two, 0, "is damaged"},
		"a private key":        {one + key, 0, `PEM block 2 in the file of CA certificates`},
		"a trusted one":        {strings.ReplaceAll(one, "CERTIFICATE", "TRUSTED CERTIFICATE"), 0, `it is a "TRUSTED CERTIFICATE"`},
		"no certificate in it": {one + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 0, "PEM block 2"},
	} {
		must(t, os.WriteFile(path, []byte(test.content), 0o600))
		pool, err := smallfile.CertPool(path)
		switch {
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: %v, want %q", name, err, test.err)
		case test.err == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case err == nil && len(pool.Subjects()) != test.want: //nolint:staticcheck // it is no system pool
			t.Errorf("%s: %d certificates", name, len(pool.Subjects())) //nolint:staticcheck // the same
		}
	}
	if _, err := smallfile.CertPool(filepath.Dir(path)); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
}

// A key and its certificate are read although an editor has saved them with a byte order mark.
func TestKeyPairWithAByteOrderMark(t *testing.T) {
	dir := t.TempDir()
	cert, key := newCA(t, "client")
	other, _ := newCA(t, "another")
	at := func(name, content string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	if _, err := smallfile.KeyPair(at("cert", mark+cert), at("key", mark+key)); err != nil {
		t.Error(err)
	}
	if _, err := smallfile.KeyPair(at("other", other), at("key", key)); err == nil {
		t.Error("a certificate with another's key")
	}
	if _, err := smallfile.KeyPair(at("cert", cert), filepath.Join(dir, "none")); err == nil ||
		!strings.Contains(err.Error(), "read the key of the client certificate") {
		t.Error(err)
	}
}

// A client certificate without its key, or a key without its certificate, is a mistake in the
// field that is missing.
func TestCheckPair(t *testing.T) {
	for _, test := range []struct{ cert, key, missing string }{
		{"", "", ""}, {"c", "k", ""}, {"c", "", "client_key_path"}, {"", "k", "client_cert_path"},
	} {
		err := smallfile.CheckPair(test.cert, test.key)
		field, _ := errors.AsType[sources.FieldError](err)
		if field.Field != test.missing {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
