package bootpolicy_test

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// No test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quote is a quote block that asks for everything that the tests need.
var quote = bootprofiles.Quote{Bank: "sha256", PCRs: []int{0, 4, 7}, EventLog: true}

// digest returns the digest of a text.
func digest(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

func hexOf(text string) string { return hex.EncodeToString(digest(text)) }

// An event is one of a PCR, by a name that stands for what was measured.
type event struct {
	pcr  int
	name string
}

// usual is what a machine measures that boots by shim and GRUB, and the kernel last.
func usual(kernel string) []event {
	return []event{
		{0, "firmware"},
		{7, "SecureBoot"},
		{7, "separator"},
		{4, "separator"},
		{4, "shim"},
		{7, "authority"},
		{4, "grub"},
		{4, kernel},
	}
}

// booted returns what a TPM proves of a machine that has measured some events.
func booted(events []event) *sources.Boot {
	log := &sources.BootLog{
		Replays: map[int]bool{0: true, 4: true, 7: true}, SecureBoot: "enabled",
		DB:          sources.Measured{Digests: [][]byte{digest("db")}},
		DBX:         sources.Measured{Digests: [][]byte{digest("dbx 1"), digest("dbx 2")}},
		Authorities: sources.Measured{Digests: [][]byte{digest("authority")}},
	}
	b := &sources.Boot{
		Bank: "sha256", Log: log,
		PCRs: map[int][]byte{0: make([]byte, 32), 4: make([]byte, 32), 7: make([]byte, 32)},
	}
	for i, e := range events {
		b.PCRs[e.pcr] = extended(b.PCRs[e.pcr], digest(e.name))
		log.Events = append(log.Events, sources.BootEvent{
			PCR: e.pcr, Number: i + 1, Digest: digest(e.name), What: "EV_OF_PCR_" + strconv.Itoa(e.pcr),
		})
		if e.pcr == 4 && e.name != "separator" {
			log.Images.Digests = append(log.Images.Digests, digest(e.name))
		}
	}
	return b
}

func extended(value, digest []byte) []byte {
	sum := sha256.Sum256(slices.Concat(value, digest))
	return sum[:]
}

func extended384(value, digest []byte) []byte {
	sum := sha512.Sum384(slices.Concat(value, digest))
	return sum[:]
}

// value returns a PCR of a boot in hex.
func value(b *sources.Boot, pcr int) string { return hex.EncodeToString(b.PCRs[pcr]) }

// machine returns the evidence of a machine after its challenge.
func machine(b *sources.Boot) *sources.Evidence {
	return &sources.Evidence{EKHash: sources.EKHash(digest("EK")), Proof: &sources.Proof{Boot: b}}
}

// profile returns a file with one profile.
func profile(conditions string) string {
	return `{"profiles": [{"name": "web", ` + conditions + `}]}`
}

// pcrs returns a condition: the values that a PCR may have.
func pcrs(pcr int, values ...string) string {
	return `"pcrs": {"sha256": {"` + strconv.Itoa(pcr) + `": ["` + strings.Join(values, `", "`) + `"]}}`
}

// open returns a source that has loaded a file.
func open(tb testing.TB, text string) *bootpolicy.Source {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "boot.json")
	write(tb, path, text)
	s := newSource(tb, bootpolicy.Config{Path: path, Quote: &quote})
	if err := s.Load(tb.Context()); err != nil {
		tb.Fatalf("Load: %v\n%s", err, text)
	}
	return s
}

func newSource(tb testing.TB, cfg bootpolicy.Config) *bootpolicy.Source {
	tb.Helper()
	s, err := bootpolicy.New(cfg)
	if err != nil {
		tb.Fatalf("New: %v", err)
	}
	return s
}

// write replaces a file by renaming, with a time that has been left alone.
func write(tb testing.TB, path, text string) {
	tb.Helper()
	must(tb, os.WriteFile(path+".new", []byte(text), 0o600))
	old := time.Now().Add(-time.Minute)
	must(tb, os.Chtimes(path+".new", old, old))
	must(tb, os.Rename(path+".new", path))
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// wantListed fails the test unless a machine is listed.
func wantListed(tb testing.TB, s *bootpolicy.Source, b *sources.Boot) sources.Verdict {
	tb.Helper()
	v, err := s.Check(tb.Context(), machine(b))
	if err != nil || !v.Listed {
		tb.Errorf("%+v, %v, want listed", v, err)
	}
	return v
}

// wantNot fails the test unless a machine is not listed, for a reason that says all these.
func wantNot(tb testing.TB, s *bootpolicy.Source, b *sources.Boot, says ...string) {
	tb.Helper()
	v, err := s.Check(tb.Context(), machine(b))
	if err != nil || v.Listed {
		tb.Errorf("%+v, %v, want not listed", v, err)
		return
	}
	for _, text := range says {
		if !strings.Contains(v.Reason, text) {
			tb.Errorf("the reason is %q, want %q in it", v.Reason, text)
		}
	}
	if len(v.Reason) > sources.MaxReason {
		tb.Errorf("the reason has %d bytes: %s", len(v.Reason), v.Reason)
	}
}
