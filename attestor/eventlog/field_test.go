package eventlog_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
)

// field is the log of a real machine.
type field struct {
	name string
	data []byte
	fieldFacts
}

// fieldFacts are what pcrs.json says of a log: its events, and PCRs by bank and index.
type fieldFacts struct {
	Events   int
	Machine  map[string]map[string]string `json:"pcrs_from_the_machine"`
	Replayed map[string]map[string]string
}

// fieldLogs returns the logs of all real machines.
func fieldLogs(tb attestortest.SkipTB) []field {
	tb.Helper()
	dir := attestortest.EventLogs(tb)
	if dir == "" {
		return nil
	}
	index, err := os.ReadFile(filepath.Join(dir, "pcrs.json"))
	if err != nil {
		tb.Fatalf("%v", err)
	}
	var byName map[string]fieldFacts
	if err := json.Unmarshal(index, &byName); err != nil {
		tb.Fatalf("%v", err)
	}
	var all []field
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			tb.Fatalf("%v", err)
		}
		all = append(all, field{name, data, byName[name]})
	}
	return all
}

// pcrs returns the PCRs of a bank: what the machine said, and else what another program replayed.
func (f *field) pcrs(tb attestortest.SkipTB, bank string) map[int][]byte {
	tb.Helper()
	all := maps.Clone(f.Replayed[bank])
	maps.Copy(all, f.Machine[bank])
	pcrs := make(map[int][]byte)
	for index, value := range all {
		var i int
		if err := json.Unmarshal([]byte(index), &i); err != nil {
			tb.Fatalf("%v", err)
		}
		var err error
		if pcrs[i], err = hex.DecodeString(value); err != nil {
			tb.Fatalf("%v", err)
		}
	}
	return pcrs
}

// The logs of real machines can be read, and replay to the PCRs of their machines. If one
// does not, a fleet of its kind is refused.
func TestRealLogsReplay(t *testing.T) {
	t.Parallel()
	logs, known := fieldLogs(t), 0
	if len(logs) != 18 {
		t.Errorf("%d logs", len(logs))
	}
	for _, f := range logs {
		l, err := eventlog.Parse(f.data)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if len(l.Events) != f.Events {
			t.Errorf("%s: %d events, want %d", f.name, len(l.Events), f.Events)
		}
		for _, bank := range l.Banks {
			replayed := l.Replay(bank)
			known += len(f.Machine[bank])
			for pcr, want := range f.pcrs(t, bank) {
				if got := replayed[pcr]; !bytes.Equal(got, want) {
					t.Errorf("%s: PCR %d, %s: %x, want %x", f.name, pcr, bank, got, want)
				}
			}
		}
	}
	if known < 150 {
		t.Errorf("%d PCRs of machines only", known)
	}
}

// secureBootOfReal says what each real log proves of Secure Boot, and of what else PCR 7 holds. db, dbx,
// authorities and images are numbers of digests; each set that is partial has a reason.
var secureBootOfReal = []struct {
	name, bank           string
	state                string
	because              string // the reason of a state, or of none
	db, dbx, auth, image int
	partialDB            string
}{
	{
		"arch-linux-workstation.bin", "sha256", "disabled", "the variable is empty, in Setup Mode",
		3, 77, 0, 2, "the variable db (event 6) has 9 entries of another kind",
	},
	{"dell-tpmlog-sha1.bin", "sha256", "", "the log has the SHA-1 form", 0, 0, 0, 0, ""},
	{"ebs-event-missing-sha1.bin", "sha256", "", "the log has the SHA-1 form", 0, 0, 0, 0, ""},
	{"gce-cos101.bin", "sha256", "enabled", "the variable is 1", 1, 0, 1, 3, ""},
	{"gce-cos101.bin", "sha384", "enabled", "the variable is 1", 1, 0, 1, 3, ""},
	{"gce-cos85-shim-extra-byte.bin", "sha256", "enabled", "the variable is 1; an old shim's events are verified", 1, 0, 1, 3, ""},
	{"gce-debian10-sha1.bin", "sha256", "", "the log has the SHA-1 form", 0, 0, 0, 0, ""},
	{"gce-rhel8.bin", "sha256", "enabled", "the variable is 1; what shim has vouched for is no authority", 2, 183, 1, 3, ""},
	{"gce-ubuntu1804-sev.bin", "sha384", "disabled", "the variable is 0, though there are keys", 2, 77, 0, 2, ""},
	{"gce-ubuntu2104-no-dbx.bin", "sha256", "disabled", "the variable is 0", 2, 0, 0, 2, ""},
	{"gce-ubuntu2404-sevsnp.bin", "sha256", "disabled", "the variable is 0", 2, 371, 0, 2, ""},
	{"gdc-host-locality3-dma.bin", "sha256", "disabled", "the variable is 0; a text about DMA means nothing", 5, 459, 0, 3, ""},
	{"glinux-laptop-locality3.bin", "sha256", "disabled", "the variable is 0; PK is not parsed", 4, 77, 0, 1, ""},
	{"intel-tpmlog.bin", "sha256", "disabled", "the variable is 0", 0, 0, 0, 10, ""},
	{"keylime-fedora41-locality3.bin", "sha256", "disabled", "the variable is 0", 4, 425, 0, 3, ""},
	{"qemu-centos9-moklisttrusted.bin", "sha256", "enabled", "the variable is 1; shim's variables are no authorities", 2, 1, 1, 3, ""},
	{"qemu-fedora37-sdboot-empty-secureboot.bin", "sha256", "disabled", "the variable is empty, as are the keys", 0, 0, 0, 0, ""},
	{"rustkeylime-type8401.bin", "sha256", "disabled", "the variable is 0; PCR 2 with a strange type does not matter", 4, 480, 0, 2, ""},
	{"windows-option-rom-sha1-wbcl.bin", "sha256", "", "the log has the SHA-1 form", 0, 0, 0, 0, ""},
}

// A real machine gets the Secure Boot state that it has: firmware and shim differ from the
// specification, and from one another.
func TestRealSecureBoot(t *testing.T) {
	t.Parallel()
	logs := make(map[string]field)
	for _, f := range fieldLogs(t) {
		logs[f.name] = f
	}
	seen := make(map[string]bool)
	for _, test := range secureBootOfReal {
		f := logs[test.name]
		seen[test.name] = true
		l, err := eventlog.Parse(f.data)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		j, err := l.Judge(test.bank, f.pcrs(t, test.bank))
		if (err != nil) != (test.state == "") {
			t.Errorf("%s: %v", test.name, err)
		}
		if err != nil {
			continue
		}
		if j.SecureBoot != test.state || (j.NoSecureBoot == "") != (j.SecureBoot != "") {
			t.Errorf("%s: %q (%s), want %q: %s", test.name, j.SecureBoot, j.NoSecureBoot, test.state, test.because)
		}
		got := [4]int{len(j.DB.Digests), len(j.DBX.Digests), len(j.Authorities.Digests), len(j.Images.Digests)}
		if want := [4]int{test.db, test.dbx, test.auth, test.image}; got != want {
			t.Errorf("%s: db, dbx, authorities, images: %d, want %d", test.name, got, want)
		}
		if j.DB.Partial != test.partialDB || j.Authorities.Partial != "" || (j.Images.Partial != "") != (test.image == 0) {
			t.Errorf("%s: %q, %q, %q", test.name, j.DB.Partial, j.Authorities.Partial, j.Images.Partial)
		}
	}
	if len(seen) != len(logs) {
		t.Errorf("%d of %d logs are in the table", len(seen), len(logs))
	}
}
