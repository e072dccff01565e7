package swtpmtest_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ekName(t *testing.T, tpm *swtpmtest.TPM, handle tpm2.TPMHandle) []byte {
	t.Helper()
	c, err := linuxudstpm.Open(tpm.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	return rsp.Name.Buffer
}

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s holds no PEM", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A TPM keeps its EK over a restart, and two TPMs have different EKs. Tests of enrolment rely
// on both.
func TestEachTPMHasItsOwnEK(t *testing.T) {
	ca := swtpmtest.NewCA(t)
	a, b := swtpmtest.Start(t, swtpmtest.Options{CA: ca}), swtpmtest.Start(t, swtpmtest.Options{CA: ca})
	first := ekName(t, a, 0x81010001)
	a.Restart()
	if !bytes.Equal(first, ekName(t, a, 0x81010001)) {
		t.Error("after a restart the TPM has another EK")
	}
	if bytes.Equal(first, ekName(t, b, 0x81010001)) {
		t.Error("two TPMs have the same EK")
	}
	root, issuer := readCertificate(t, ca.RootPath), readCertificate(t, ca.IssuerPath)
	if err := issuer.CheckSignatureFrom(root); err != nil {
		t.Errorf("the root has not signed the issuing CA: %v", err)
	}
}

// What a test does to a TPM is gone for the next test, which may get a TPM with the same EK, and
// two TPMs of one test have neither the same EK nor the same vendor. Otherwise a test that passes
// alone fails after another test, and a replaced TPM is taken for the previous TPM.
func TestTPMsOfEarlierTests(t *testing.T) {
	const index = 0x01C0000A
	for range 2 {
		t.Run("test", func(t *testing.T) {
			a, b := swtpmtest.Start(t, swtpmtest.Options{}), swtpmtest.Start(t, swtpmtest.Options{})
			a.WriteNV(index, []byte("x")) // fails if there is the index
			if bytes.Equal(ekName(t, a, 0x81010001), ekName(t, b, 0x81010001)) {
				t.Error("two TPMs have the same EK")
			}
			if readCertificate(t, a.CA.RootPath).Equal(readCertificate(t, b.CA.RootPath)) {
				t.Error("two TPMs have the same CA")
			}
		})
	}
}

// With RSA3072, the TPM has an EK of that type. Otherwise tests of it would test another key.
func TestRSA3072(t *testing.T) {
	ekName(t, swtpmtest.Start(t, swtpmtest.Options{RSA3072: true}), 0x8101001C)
}

// A stopped TPM refuses connections at once, so that no test waits for it, and its folder is
// removed.
func TestStopLeavesNothing(t *testing.T) {
	var dir string
	t.Run("run", func(t *testing.T) {
		tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
		dir = filepath.Dir(tpm.Socket)
		tpm.Stop()
		tpm.Stop()
		if c, err := net.Dial("unix", tpm.Socket); err == nil {
			c.Close()
			t.Error("a stopped TPM answers")
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("folder %s is left: %v", dir, err)
	}
}

// Without swtpm, a test fails and says what to install. It must not pass without having run.
func TestMissingProgram(t *testing.T) {
	if os.Getenv("SWTPMTEST_WITHOUT_SWTPM") == "1" {
		swtpmtest.Start(t, swtpmtest.Options{})
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "SWTPMTEST_WITHOUT_SWTPM=1", "PATH="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("apt-get install swtpm swtpm-tools")) {
		t.Errorf("without swtpm: %v\n%s", err, out)
	}
}

// An agent reads from NV memory exactly what WriteNV has written, even if that took several
// commands. Tests of certificates rely on it.
func TestWriteNV(t *testing.T) {
	const index = tpm2.TPMHandle(0x01C0000A)
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	want := bytes.Repeat([]byte("certificate "), 100)
	tpm.WriteNV(uint32(index), want)
	c, err := linuxudstpm.Open(tpm.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for offset := 0; offset < len(want); offset += 400 {
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: public.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: public.NVName},
			Size:       400, Offset: uint16(offset),
		}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rsp.Data.Buffer...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}
