package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// openssl runs openssl in the folder of the web server.
func (n *webServer) openssl(args ...string) {
	n.w.t.Helper()
	cmd := exec.CommandContext(n.w.ctx, "openssl", args...)
	cmd.Dir = n.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		n.w.t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
}

// signedList returns a list with what a signed list needs.
func (n *webServer) signedList(serial int, hashes ...string) string {
	n.w.t.Helper()
	b, err := json.Marshal(map[string]any{
		"version": 1, "serial": serial, "list": "fleet", "keys": hashes,
		"expires": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	})
	if err != nil {
		n.w.t.Fatal(err)
	}
	return string(b)
}

// publishSigned signs a list with the commands of the documentation, and publishes both.
func (n *webServer) publishSigned(list string) {
	n.w.t.Helper()
	n.w.write(n.path("tpm.json"), list)
	n.openssl("pkeyutl", "-sign", "-inkey", "list.key", "-rawin", "-in", "tpm.json", "-out", "tpm.json.sig")
	if err := os.Rename(n.path("tpm.json.sig"), n.path("www/tpm.json.sig")); err != nil {
		n.w.t.Fatal(err)
	}
	n.publish(list)
}

// An attacker who controls the web server can neither add a machine nor bring back one that was
// removed. A changed list, or an older signed one, does not replace the current list, and a server
// that starts then has no list. A list signed with the key is followed.
func TestSignedListBehindAWebServer(t *testing.T) {
	w := newWorld(t)
	n := w.webServer()
	n.openssl("genpkey", "-algorithm", "ed25519", "-out", "list.key")
	n.openssl("pkey", "-in", "list.key", "-pubout", "-out", "list.pub")
	listed, unknown := stranger(t, 0), stranger(t, 1)
	kept := n.signedList(4, unknown.EKHash())
	good := n.signedList(5, listed.EKHash())
	n.publishSigned(good)
	n.start()
	config := spiretest.ServerConfig{PluginData: n.source("inventory", `poll_interval = "1s"`,
		fmt.Sprintf("signature_url = \"https://%s/tpm.json.sig\"", n.address()),
		fmt.Sprintf("public_key_path = %q", n.path("list.pub")), `list_id = "fleet"`)}
	s := w.server(config)
	w.wantCode(s, listed, codes.OK)
	w.wantCode(s, unknown, codes.PermissionDenied)

	for _, attack := range []struct {
		name, says string
		publish    func()
	}{
		{"tampered", "the list's signature", func() { n.publish(n.signedList(6, unknown.EKHash())) }},
		{"replayed", "is a replay", func() { n.publishSigned(kept) }},
		{"unsigned", "fetch the signature: the list's server answered 404", func() {
			if err := os.Remove(n.path("www/tpm.json.sig")); err != nil {
				t.Fatal(err)
			}
			n.publish(n.signedList(7, unknown.EKHash()))
		}},
	} {
		mark := s.Mark()
		attack.publish()
		w.waitLog(s.Process, mark, "the last good data stays", attack.says)
		w.wantCode(s, unknown, codes.PermissionDenied)
		w.wantCode(s, listed, codes.OK)
	}
	empty := w.server(config)
	w.wantCode(empty, listed, codes.Unavailable)
	w.wantCode(empty, unknown, codes.Unavailable)

	n.publishSigned(n.signedList(8, unknown.EKHash()))
	for _, s := range []*spiretest.Server{s, empty} {
		w.wantCodeSoon(s, unknown, codes.OK)
		w.wantCode(s, listed, codes.PermissionDenied)
	}
}
