package server_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// kernel returns the log of a boot by a boot loader and a kernel.
func kernel(name string) *eventlogtest.Log {
	return eventlogtest.Boot{
		Banks: []string{"sha256", "sha384"}, Images: [][]byte{[]byte("boot loader"), []byte(name)},
	}.Log()
}

func hexSum(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// policyOf writes boot profiles into a file and returns the sources of a configuration: the
// list of some machines, and the profiles.
func policyOf(t *testing.T, profiles string, tpms ...*attestortest.TPM) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "boot.json")
	if err := os.WriteFile(path, []byte(`{"profiles": [`+profiles+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return oneHashDir(hashDir(t, tpms...)) +
		fmt.Sprintf("source \"boot_policy\" \"golden\" { path = %q }\n", path) +
		`quote { pcrs = [0, 4, 7] event_log = "optional" }` + "\n"
}

const production = `allow "production" { all = ["factory", "golden"] }`

// While a kernel rolls out, a machine with the old one and a machine with the new one are both
// admitted by one profile. A third is refused, and the log says by which event.
func TestBootPolicyOfTwoKernels(t *testing.T) {
	old, fresh, third := kernel("kernel 1"), kernel("kernel 2"), kernel("kernel 3")
	values := hex.EncodeToString(old.PCRs("sha256")[4]) + `", "` + hex.EncodeToString(fresh.PCRs("sha256")[4])
	images := strings.Join([]string{hexSum("boot loader"), hexSum("kernel 1"), hexSum("kernel 2")}, `", "`)
	certificate := hexSum(string(eventlogtest.Certificate("db")))
	event := 1 + slices.IndexFunc(third.Events, func(e eventlogtest.Event) bool {
		return e.PCR == 4 && string(e.Measured) == "kernel 3" || string(e.Data) == "kernel 3"
	})
	for name, profile := range map[string]string{
		"by PCR 4":  `"pcrs": {"sha256": {"4": ["` + values + `"]}}`,
		"by images": `"secureboot": {"enabled": true, "db": {"only": ["` + certificate + `"]}, "authorities": {"only": ["` + certificate + `"]}}, "images": {"only": ["` + images + `"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			one, two, three := quoting(t, old, old.Bytes()), quoting(t, fresh, fresh.Bytes()), quoting(t, third, third.Bytes())
			p := serve(t)
			p.configure(t, policyOf(t, `{"name": "web", "labels": ["boot:ok"], `+profile+`}`, one, two, three)+production)
			for _, tpm := range []*attestortest.TPM{one, two} {
				got, err := p.attestTPM(t, tpm)
				if err != nil {
					t.Fatalf("%v: %v", err, p.log.find(t, "Attestation"))
				}
				want := []string{
					"boot:web", "label:boot:ok", "pub_hash:" + tpm.EKHash(), "rule:production",
					"secureboot:enabled", "source:factory", "source:golden",
				}
				if !slices.Equal(got.SelectorValues, want) {
					t.Errorf("selectors %q, want %q", got.SelectorValues, want)
				}
			}
			_, err := p.attestTPM(t, three)
			wantStatus(t, err, codes.PermissionDenied, "")
			said, _ := p.log.find(t, "Attestation failed")["sources"].(string)
			for _, want := range []string{"golden: not listed (meets no profile; web: ", hexSum("kernel 3"), fmt.Sprintf("event %d", event)} {
				if !strings.Contains(said, want) {
					t.Errorf("sources are %q, want %q in it", said, want)
				}
			}
		})
	}
}

// A rule on trial refuses nobody, and the line about the admission says what it would have done,
// and why: an operator rolls a profile out by these lines.
func TestBootPolicyOnTrial(t *testing.T) {
	log := kernel("kernel 2")
	tpm := quoting(t, log, log.Bytes())
	p := serve(t)
	p.configure(t, policyOf(t, `{"name": "next", "images": {"only": ["`+hexSum("boot loader")+`"]}}`, tpm)+
		`allow "today" { any = ["factory"] } allow "next" { all = ["factory", "golden"] enforce = false }`)
	got, err := p.attestTPM(t, tpm)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(got.SelectorValues, "boot:next") {
		t.Errorf("selectors %q", got.SelectorValues)
	}
	p.log.await(t, "Machine admitted")
	line := p.log.find(t, "Machine admitted")
	said, _ := line["sources"].(string)
	if line["@level"] != "info" || fmt.Sprint(line["trials"]) != "allow next: would not hold" ||
		!strings.Contains(said, "golden: not listed (meets no profile; next: the image "+hexSum("kernel 2")+" is new") {
		t.Errorf("%v", line)
	}
}

// A machine that cannot prove its boot, or withholds the proof, is refused for good, and the
// log says what is missing. With attributes = false, boot: stays and labels go.
func TestBootPolicyRefusals(t *testing.T) {
	log := kernel("kernel")
	off := eventlogtest.Boot{Banks: []string{"sha256", "sha384"}, SecureBoot: []byte{0}}.Log()
	const enabled = `{"name": "web", "labels": ["boot:ok"], "secureboot": {"enabled": true}}`
	for _, tt := range []struct {
		name string
		tpm  *attestortest.TPM
		says string
	}{
		{"an agent that does not quote", attestortest.New(t, attestortest.Options{EK: attestor.P256}), "golden: not listed (the machine has not quoted its PCRs"},
		{"no log", quoting(t, log, nil), "golden: not listed (meets no profile; web: there is no event log, which it needs: the machine sent no event log)"},
		{"a torn log", quoting(t, log, log.Bytes()[:300]), "web: there is no event log, which it needs: the event log cannot be read"},
		{"a log of another boot", quoting(t, off, log.Bytes()), "web: the event log does not lead to the quoted PCR 7"},
		{"Secure Boot is off", quoting(t, off, off.Bytes()), "web: Secure Boot is disabled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := serve(t)
			p.configure(t, policyOf(t, enabled, tt.tpm)+production)
			_, err := p.attestTPM(t, tt.tpm)
			wantStatus(t, err, codes.PermissionDenied, "")
			if said, _ := p.log.find(t, "Attestation failed")["sources"].(string); !strings.Contains(said, tt.says) {
				t.Errorf("sources are %q, want %q in it", said, tt.says)
			}
		})
	}
	tpm, p := quoting(t, log, log.Bytes()), serve(t)
	silent := strings.Replace(policyOf(t, enabled, tpm), `boot.json" }`, `boot.json" attributes = false }`, 1)
	p.configure(t, silent+production)
	got, err := p.attestTPM(t, tpm)
	if err != nil || !slices.Contains(got.SelectorValues, "boot:web") || slices.Contains(got.SelectorValues, "label:boot:ok") {
		t.Errorf("%v, %v", got, err)
	}
}

// A machine that may be challenged sends the largest logs that it can, while the server is configured anew
// again and again. It is refused, the line about it is short, nothing stays held, and an honest machine is
// admitted beside it.
func TestHostileLogs(t *testing.T) {
	events := func(n int) *eventlogtest.Log {
		l := eventlogtest.New("sha256")
		for range n {
			l.Add(4, eventlogtest.Application, nil)
		}
		return l
	}
	most := events(4096)
	for i := range most.Events {
		most.Events[i].PCR, most.Events[i].Measured = uint32(4+3*(i%2)), []byte{byte(i), byte(i >> 8)}
	}
	honest := kernel("kernel 1")
	good := quoting(t, honest, honest.Bytes())
	for _, tt := range []struct {
		name string
		log  *eventlogtest.Log
		sent []byte
		says string
	}{
		{"300 KiB", honest, bytes.Repeat([]byte{0xff}, 300<<10), "the event log has 307200 bytes, at most 262144 are allowed"},
		{"as many events as there may be", most, most.Bytes(), "PCR 7 has no separator; the image "},
		{"one event more", honest, events(4097).Bytes(), "the event log has more than 4096 events"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tpm, p := quoting(t, tt.log, []byte{}), serve(t)
			sent := []byte(`"EventLog":"` + base64.StdEncoding.EncodeToString(tt.sent) + `"`)
			images := hexSum("boot loader") + `", "` + hexSum("kernel 1")
			text := policyOf(t, `{"name": "web", "secureboot": {"enabled": true}, "images": {"only": ["`+images+`"]}}`, tpm, good) + production
			p.configure(t, text)
			done, again := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(again)
				for {
					select {
					case <-done:
						return
					default:
						if err := p.tryConfigure(text); err != nil {
							t.Error(err)
						}
					}
				}
			}()
			for range 4 {
				_, err := p.attest(t, tpm.Payload(t), func(c []byte) []byte {
					return bytes.Replace(tpm.Answer(t, c), []byte(`"EventLog":null`), sent, 1) // as our agent never would
				})
				wantStatus(t, err, codes.PermissionDenied, "this TPM is not admitted")
				said, _ := p.log.find(t, "Attestation failed")["sources"].(string)
				if !strings.Contains(said, tt.says) || len(said) > 4<<10 {
					t.Errorf("sources are %q, want %q in it", said, tt.says)
				}
				if _, err := p.attestTPM(t, good); err != nil {
					t.Error(err)
				}
			}
			close(done)
			<-again
			if n := p.Arriving(); n != 0 {
				t.Errorf("%d bytes are still held", n)
			}
		})
	}
}

// Several sources of profiles are told apart: what only a rule on trial needs gives no selector, and neither
// does a source that does not list the machine.
func TestSeveralBootPolicies(t *testing.T) {
	log := kernel("kernel")
	tpm := quoting(t, log, log.Bytes())
	profile := func(name string) string {
		return `{"name": "` + name + `", "labels": ["of:` + name + `"], "secureboot": {"enabled": true}}`
	}
	next := policyOf(t, profile("next"), tpm) // whose other lines stand in golden's
	_, next, _ = strings.Cut(next, "\n")
	next, _, _ = strings.Cut(strings.Replace(next, `"golden"`, `"golden-next"`, 1), "\n")
	other := policyOf(t, `{"name": "lab", "labels": ["of:lab"], "secureboot": {"enabled": false}}`, tpm)
	_, other, _ = strings.Cut(other, "\n")
	other, _, _ = strings.Cut(strings.Replace(other, `"golden"`, `"lab"`, 1), "\n")
	p := serve(t)
	p.configure(t, policyOf(t, profile("web"), tpm)+next+"\n"+other+"\n"+`
allow "production" { all = ["factory"] any = ["golden", "lab"] }
allow "next"       { all = ["factory", "golden-next"]  enforce = false }`)
	got, err := p.attestTPM(t, tpm)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"boot:web", "label:of:web", "pub_hash:" + tpm.EKHash(), "rule:production", "secureboot:enabled",
		"source:factory", "source:golden",
	}
	if !slices.Equal(got.SelectorValues, want) {
		t.Errorf("selectors %q, want %q", got.SelectorValues, want)
	}
	p.log.await(t, "Machine admitted")
	if line := p.log.find(t, "Machine admitted"); fmt.Sprint(line["trials"]) != "allow next: would hold" {
		t.Errorf("%v", line)
	}
}

// A profile that is gone when the answer arrives admits nobody: a machine does not outlast it by holding its
// challenge open.
func TestBootPolicyChangesMeanwhile(t *testing.T) {
	log := kernel("kernel")
	tpm := quoting(t, log, log.Bytes())
	web := `{"name": "web", "secureboot": {"enabled": true}}`
	for name, after := range map[string]string{
		"another profile": `{"name": "web", "secureboot": {"enabled": false}}`,
		"no profile":      ``,
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t)
			p.configure(t, policyOf(t, web, tpm)+production)
			got, err := p.attest(t, tpm.Payload(t), func(c []byte) []byte {
				p.configure(t, policyOf(t, after, tpm)+production)
				return tpm.Answer(t, c)
			})
			wantStatus(t, err, codes.PermissionDenied, "this TPM is not admitted")
			if got != nil {
				t.Errorf("%v", got)
			}
		})
	}
}

// The keys of spire-tpm-plugin may have a quote block beside them: a fleet gets selectors of its boot without
// rules.
func TestQuoteBesideHashPath(t *testing.T) {
	log := booted()
	tpm := quoting(t, log, log.Bytes())
	p := serve(t)
	p.configure(t, fmt.Sprintf(`hash_path = %q quote { pcrs = [4, 7] bank = "sha384" selectors = [4] event_log = "optional" }`,
		hashDir(t, tpm)))
	got, err := p.attestTPM(t, tpm)
	if err != nil {
		t.Fatal(err)
	}
	pcr := "pcr:4:sha384:" + hex.EncodeToString(log.PCRs("sha384")[4])
	for _, want := range []string{pcr, "secureboot:enabled", "source:hash_path", "rule:default"} {
		if !slices.Contains(got.SelectorValues, want) {
			t.Errorf("selectors %q, want %s among them", got.SelectorValues, want)
		}
	}
}
