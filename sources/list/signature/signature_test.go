package signature_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
)

const list = `{"version": 1, "serial": 42, "list": "fleet", "expires": "2030-01-01T00:00:00Z", "keys": []}` + "\n"

// The commands of the package's documentation, run as they stand there by a real
// openssl: what an operator copies has to make a signature that is accepted, in
// both of its forms, and of this list only.
func TestCommandsOfTheDocumentation(t *testing.T) {
	commands := documentedCommands(t)
	for name, run := range map[string][]string{
		"Ed25519":     {commands[0], commands[2], commands[3], commands[5]},
		"ECDSA P-256": {commands[1], commands[2], commands[4], commands[5]},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "list.json", list)
			for _, command := range run {
				openssl(t, dir, command)
			}
			key := parse(t, read(t, dir, "list.pub"))
			private, err := signature.ParsePrivateKey(read(t, dir, "list.key"))
			if err != nil {
				t.Fatal(err)
			}
			sig, err := signature.Sign(private, []byte(list))
			if err != nil {
				t.Fatal(err)
			}
			if err := key.Verify([]byte(list), sig); err != nil || key.Verify([]byte(list+" "), sig) == nil {
				t.Errorf("what Sign has made: %v", err)
			}
			for _, file := range []string{"list.json.sig", "list.json.sig.b64"} {
				sig := read(t, dir, file)
				if err := key.Verify([]byte(list), sig); err != nil {
					t.Errorf("%s: %v", file, err)
				}
				if err := key.Verify([]byte(list+" "), sig); err == nil {
					t.Errorf("%s: a signature over another list", file)
				}
			}
		})
	}
}

// documentedCommands returns the commands in the documentation, in order.
func documentedCommands(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("signature.go")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for line := range strings.Lines(string(source)) {
		if command, ok := strings.CutPrefix(line, "//\topenssl "); ok {
			commands = append(commands, strings.TrimSpace(command))
		}
	}
	if len(commands) != 6 {
		t.Fatalf("the documentation has %d commands: %q", len(commands), commands)
	}
	return commands
}

func openssl(t *testing.T, dir, args string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", strings.Fields(args)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v (install openssl, 1.1.1 or later)\n%s", args, err, out)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What a real cosign makes: testdata/cosign is the output of cosign 2.6.1, by the
// commands in the documentation of this package, with a key that has been thrown
// away. Its signature is one over this list, and over no other.
func TestCosign(t *testing.T) {
	dir := filepath.Join("testdata", "cosign")
	key := parse(t, read(t, dir, "cosign.pub"))
	signed, sig := read(t, dir, "tpm.json"), read(t, dir, "tpm.json.sig")
	for _, end := range []string{"", "\n", "\r\n"} { // as a shell or an editor may add them
		if err := key.Verify(signed, append(bytes.Clone(sig), end...)); err != nil {
			t.Errorf("with %q at its end: %v", end, err)
		}
	}
	for name, other := range map[string][]byte{
		"another serial": bytes.Replace(signed, []byte(`"serial": 42`), []byte(`"serial": 43`), 1),
		"a byte more":    append(bytes.Clone(signed), '\n'),
		"nothing":        nil,
	} {
		if bytes.Equal(other, signed) || key.Verify(other, sig) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func publicPEM(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// parse returns the one key in a text.
func parse(t testing.TB, text []byte) *signature.PublicKey {
	t.Helper()
	keys, err := signature.ParsePublicKeys(text)
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	return keys[0]
}

// signed returns a key of each kind, and its signature over the list.
func signed(t testing.TB) (keys []*signature.PublicKey, sigs [][]byte) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(list))
	der, err := ecdsa.SignASN1(rand.Reader, ec, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []any{public, ec.Public()} {
		keys = append(keys, parse(t, publicPEM(t, p)))
	}
	return keys, [][]byte{ed25519.Sign(private, []byte(list)), der}
}

// Nothing that somebody without the key can make is accepted: a signature that was truncated,
// extended or changed by one bit, one of the other algorithm or by another key, or nothing at all.
func TestForgedSignatures(t *testing.T) {
	keys, sigs := signed(t)
	others, _ := signed(t)
	for i, key := range keys {
		sig := sigs[i]
		text := []byte(base64.StdEncoding.EncodeToString(sig))
		if err := key.Verify([]byte(list), sig); err != nil {
			t.Fatalf("the good signature: %v", err)
		}
		bad := map[string][]byte{
			"nil": nil, "empty": {}, "blank": []byte("\n"), "zeros": make([]byte, len(sig)),
			"of the other algorithm": sigs[1-i], "twice": append(bytes.Clone(sig), sig...),
			"a byte more": append(bytes.Clone(sig), 0), "in base64 twice": []byte(base64.StdEncoding.EncodeToString(text)),
			"base64 and a digit": append(bytes.TrimRight(text, "="), 'A'), "base64 for URLs": []byte(base64.URLEncoding.EncodeToString(append([]byte{0xff, 0xff}, sig...))),
			"base64 and more": append(bytes.Clone(text), " x"...), "a signature that is too long": make([]byte, signature.MaxSignature+1),
			"base64 that is too long": append(bytes.Clone(text), bytes.Repeat([]byte("\n"), signature.MaxSignature)...),
		}
		for at := range sig {
			bad["cut at "+string(rune('0'+at))] = sig[:at]
			for bit := range 8 {
				changed := bytes.Clone(sig)
				changed[at] ^= 1 << bit
				if key.Verify([]byte(list), changed) == nil {
					t.Errorf("key %d: bit %d of byte %d may be changed", i, bit, at)
				}
			}
		}
		for name, sig := range bad {
			if key.Verify([]byte(list), sig) == nil {
				t.Errorf("key %d: %s: accepted", i, name)
			}
		}
		if others[i].Verify([]byte(list), sig) == nil {
			t.Errorf("key %d: accepted by another key", i)
		}
		if key.Verify(nil, sig) == nil {
			t.Errorf("key %d: accepted over nothing", i)
		}
	}
}

// Without a key, nothing counts as signed.
func TestNoKey(t *testing.T) {
	_, sigs := signed(t)
	for _, key := range []*signature.PublicKey{nil, {}} {
		if err := key.Verify([]byte(list), sigs[0]); err == nil {
			t.Errorf("%v accepts a signature", key)
		}
	}
}

// While a key is being replaced, the file holds both keys, and signatures by either are good;
// signatures by a key that was removed are not.
func TestSeveralKeys(t *testing.T) {
	var text []byte
	var ids []signature.ID
	var sigs [][]byte
	for range 2 {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, publicPEM(t, public)...)
		ids = append(ids, parse(t, publicPEM(t, public)).ID())
		sigs = append(sigs, ed25519.Sign(private, []byte(list)))
	}
	keys, err := signature.ParsePublicKeys(text)
	if err != nil || len(keys) != 2 || ids[0] == ids[1] {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for i, sig := range sigs {
		if id, err := keys.Verify([]byte(list), sig); err != nil || id != ids[i] || !keys.Has(id) {
			t.Errorf("key %d: %v", i, err)
		}
		other := keys[1-i : 2-i]
		if id, err := other.Verify([]byte(list), sig); err == nil || id != (signature.ID{}) || other.Has(ids[i]) {
			t.Errorf("key %d was taken out: %x, %v", i, id, err)
		}
	}
	if _, err := keys.Verify([]byte(list+" "), sigs[0]); err == nil || !strings.Contains(err.Error(), "nor by another one of the 2") {
		t.Errorf("over another list: %v", err)
	}
	for _, none := range []signature.PublicKeys{nil, {}, {{}}} {
		if id, err := none.Verify([]byte(list), sigs[0]); err == nil || id != (signature.ID{}) {
			t.Errorf("%v: %x, %v", none, id, err)
		}
	}
}

// A key that is weaker than those documented, or a file that holds anything else
// beside its keys, is refused.
func TestParsePublicKeysRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := publicPEM(t, public)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":             {nil, "not a PEM block"},
		"no PEM":              {[]byte("ssh-ed25519 AAAA"), "not a PEM block"},
		"DER":                 {[]byte("\x30\x2a\x30\x05"), "not a PEM block"},
		"text before":         {append([]byte("key:\n"), good...), "not a PEM block"},
		"text behind":         {append(bytes.Clone(good), 'x'), "not a PEM block"},
		"text between":        {append(append(bytes.Clone(good), "old:\n"...), good...), "not a PEM block"},
		"a block cut off":     {append(bytes.Clone(good), good[:len(good)/2]...), "incomplete"},
		"a weak second one":   {append(bytes.Clone(good), publicPEM(t, p384.Public())...), "P-384"},
		"a private key":       {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), `block of type "PRIVATE KEY"`},
		"headers":             {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Headers: map[string]string{"a": "b"}}), "headers"},
		"no key inside":       {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pkcs8}), "parse the public key"},
		"RSA":                 {publicPEM(t, rsaKey.Public()), "*rsa.PublicKey"},
		"P-384":               {publicPEM(t, p384.Public()), "P-384"},
		"longer than allowed": {bytes.Repeat([]byte("\n"), signature.MaxPublicKeys+1), "more than 4096"},
	} {
		key, err := signature.ParsePublicKeys(test.text)
		if key != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, %v; want an error with %q", name, key, err, test.want)
		}
	}
	if _, err := signature.ParsePublicKeys(append([]byte("\n"), append(good, "\n\n"...)...)); err != nil {
		t.Errorf("a key between blanks: %v", err)
	}
}

// A key that no verifier takes signs nothing.
func TestParsePrivateKeyRefuses(t *testing.T) {
	pkcs8 := func(key any, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	good := pkcs8(private, err)
	if _, err := signature.ParsePrivateKey(append([]byte("\n"), append(good, '\n')...)); err != nil {
		t.Errorf("a key between blanks: %v", err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	weak := pkcs8(p384, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	rsaPEM := pkcs8(rsaKey, err)
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":      {nil, "not one PEM block"},
		"a public key": {publicPEM(t, p384.Public()), "not one PEM block"},
		"two":          {append(bytes.Clone(good), good...), "not one PEM block"},
		"cut":          {good[:len(good)/2], "not one PEM block"},
		"no key in it": {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), "parse the private key"},
		"P-384":        {weak, "P-384"},
		"RSA":          {rsaPEM, "*rsa.PrivateKey"},
		"no signer":    {pkcs8(x25519, err), "*ecdh.PrivateKey"},
		"too long":     {bytes.Repeat([]byte("\n"), signature.MaxPrivateKey+1), "more than 4096"},
	} {
		key, err := signature.ParsePrivateKey(test.text)
		if key != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, %v; want an error with %q", name, key, err, test.want)
		}
	}
}

// FuzzSignature looks for bytes that pass for a signature without being one, and for bytes that
// crash the process.
func FuzzSignature(f *testing.F) {
	keys, sigs := signed(f)
	for i, sig := range sigs {
		f.Add(sig, byte(i))
		f.Add([]byte(base64.StdEncoding.EncodeToString(sig)), byte(i))
	}
	f.Fuzz(func(t *testing.T, sig []byte, which byte) {
		i := int(which) % len(keys)
		if keys[i].Verify([]byte(list), sig) != nil {
			return
		}
		raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(sig)))
		if !bytes.Equal(sig, sigs[i]) && (err != nil || !bytes.Equal(raw, sigs[i])) {
			t.Errorf("%x is a signature", sig)
		}
	})
}
