package clitest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// BootLog returns the event log of the tests' machine after it has booted a kernel.
func BootLog(kernel string) *eventlogtest.Log {
	l := eventlogtest.Boot{
		Banks: []string{"sha1", "sha256"}, Images: [][]byte{[]byte("boot loader"), []byte(kernel)},
	}.Log()
	return l.Add(1, eventlogtest.CRTMVersion, []byte("Serial Number 4711"))
}

// BootedTPM returns the TPM of a machine that has booted.
func BootedTPM(t *testing.T) *swtpmtest.TPM {
	t.Helper()
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for _, e := range BootLog("6.1.0-49").Events {
		if e.Extends() {
			tpm.Extend(int(e.PCR), map[string][]byte{"sha1": e.Digest("sha1"), "sha256": e.Digest("sha256")})
		}
	}
	return tpm
}

// WriteBootLogs writes the event logs of the tests' machine, boot.log, and of other machines.
func WriteBootLogs(folder string) error {
	insecure := eventlogtest.Boot{SecureBoot: []byte{0}}.Log()
	hashDB := eventlogtest.Boot{}.Log()
	hashDB.Events[hashDB.Index(7, 3)].Data = eventlogtest.Variable(eventlogtest.Security, "db",
		eventlogtest.Database(eventlogtest.SHA256, make([]byte, 32)))
	var all []error
	for name, content := range map[string][]byte{
		"boot.log":        BootLog("6.1.0-49").Bytes(),
		"newer.log":       BootLog("6.1.0-50").Bytes(),
		"insecure.log":    insecure.Bytes(),
		"hashdb.log":      hashDB.Bytes(),
		"noauthority.log": eventlogtest.Boot{Authorities: [][]byte{}}.Log().Bytes(),
		"olddbx.log":      eventlogtest.Boot{DBX: [][]byte{}}.Log().Bytes(),
		"sha1.log":        eventlogtest.Boot{Banks: []string{"sha1"}}.Log().SHA1Form(),
		"empty.log":       {},
	} {
		all = append(all, os.WriteFile(filepath.Join(folder, name), content, 0o600))
	}
	return errors.Join(all...)
}
