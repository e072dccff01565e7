package eventlog_test

import (
	"bytes"
	"crypto"
	"testing"

	"github.com/google/go-attestation/attest"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	test "github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// secondOpinion compares this package's result for a log with go-attestation's. The two may differ
// in one direction only: this package may prove less. It returns the number of PCRs and states that
// both have proved.
func secondOpinion(tb testing.TB, data []byte) (agreed int) {
	tb.Helper()
	ours, err := eventlog.Parse(data)
	if err != nil {
		return 0
	}
	theirs, err := attest.ParseEventLog(bytes.Clone(data))
	if err != nil {
		return 0
	}
	for bank, hash := range map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384} {
		pcrs := ours.Replay(bank)
		for pcr, value := range pcrs {
			if _, err := theirs.Verify([]attest.PCR{{Index: pcr, Digest: value, DigestAlg: hash}}); err != nil {
				tb.Fatalf("PCR %d, %s: it comes to %x, go-attestation: %v", pcr, bank, value, err)
			}
			agreed++
		}
		j, err := ours.Judge(bank, pcrs)
		if err != nil || j.SecureBoot == "" {
			continue
		}
		events, err := theirs.Verify([]attest.PCR{{Index: 7, Digest: pcrs[7], DigestAlg: hash}})
		if err != nil {
			tb.Fatalf("%s: PCR 7: go-attestation: %v", bank, err)
		}
		state, err := attest.ParseSecurebootState(events)
		if err != nil { // it knows less
			continue
		}
		if state.Enabled != (j.SecureBoot == "enabled") {
			tb.Fatalf("%s: Secure Boot is %s, go-attestation: %v", bank, j.SecureBoot, state.Enabled)
		}
		agreed++
	}
	return agreed
}

// Another implementation of the specification comes to the same PCRs and Secure Boot states, for real logs and for
// those that tests build.
func TestSecondOpinion(t *testing.T) {
	t.Parallel()
	agreed := 0
	for _, f := range fieldLogs(t) {
		agreed += secondOpinion(t, f.data)
	}
	if agreed < 200 {
		t.Errorf("they agree %d times only", agreed)
	}
	for _, boot := range []test.Boot{{}, {SecureBoot: []byte{0}}, {SecureBoot: []byte{}}, {Banks: []string{"sha1", "sha384"}}} {
		if secondOpinion(t, boot.Log().Bytes()) < 9 {
			t.Errorf("they do not agree on %+v", boot)
		}
	}
}
