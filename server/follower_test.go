package server_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A follower sees a change of a list as soon as it looks, keeps what it has loaded when the rules
// change, and never takes a machine for refused that could be admitted by what only the machine can
// show: its EK certificate, its DevID or its boot.
func TestFollower(t *testing.T) {
	ev := &sources.Evidence{Incomplete: true}
	ev.EKHash, _ = sources.ParseEKHash(attestortest.New(t, attestortest.Options{EK: attestor.P256}).EKHash())
	dir := t.TempDir()
	file := filepath.Join(dir, "list")
	list := fmt.Sprintf("source \"hash_file\" \"list\" { path = %q }\n", file)
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	other := strings.Repeat("ab", 32) + "\n"
	write(other + ev.EKHash.String() + "\n")
	var follower *server.Previewer
	follow := func(text string) {
		t.Helper()
		c, err := config.Parse(text, "example.org")
		if err != nil {
			t.Fatal(err)
		}
		next, err := server.NewFollower(t.Context(), c, follower, nil)
		if err != nil {
			t.Fatal(err)
		}
		if follower != nil {
			follower.Close()
		}
		follower = next
	}
	want := func(outcome policy.Outcome) {
		t.Helper()
		if err := follower.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := follower.Screen(t.Context(), ev); d.Outcome != outcome {
			t.Errorf("%v: %s, want %v", d.Outcome, d.Explain(), outcome)
		}
	}
	follow(list)
	defer func() { follower.Close() }()
	want(policy.Challenge)
	write(other)
	want(policy.Refused)
	started := follower.Status()[0].Started
	follow(list + `source "hash_dir" "stolen" {
		path = "/nowhere"
		marker = "m"
	}
	allow "listed" { any = ["list"] }
	deny "stolen" { any = ["stolen"] }`)
	want(policy.Refused) // even though the folder of the deny list does not exist
	if status := follower.Status(); !status[0].Started.Equal(started) {
		t.Error("the list was loaded anew")
	}
	for _, source := range []string{
		`source "ek_ca" "shown" { ca_path = "/nowhere" }`,
		`source "devid" "shown" { ca_path = "/nowhere" }`,
		`source "boot_policy" "shown" { path = "/nowhere" } quote { pcrs = [0] }`,
	} {
		follow(list + source + "\nallow \"any\" { any = [\"list\", \"shown\"] }")
		want(policy.Challenge)
		follow(list + source + "\nallow \"all\" { all = [\"list\", \"shown\"] }")
		want(policy.Refused)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	follow(list)
	want(policy.Unavailable)
}
