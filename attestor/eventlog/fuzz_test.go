package eventlog_test

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	test "github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// ifThere lets a fuzzer run without the logs of real machines, unless they are required.
type ifThere struct{ *testing.F }

func (ifThere) Skipf(string, ...any) {}

// addSeeds adds real logs and logs that tests build, and those cut, twice and with what a header may say.
func addSeeds(f *testing.F) {
	f.Helper()
	for _, l := range fieldLogs(ifThere{f}) {
		f.Add(l.data)
	}
	for _, boot := range []test.Boot{{}, {SecureBoot: []byte{0}}, {SecureBoot: []byte{}}, {Banks: []string{"sha1", "sha256", "sha384"}}} {
		l := boot.Log()
		l.Authority(test.Shim, "MokSBState", []byte{1}).Add(math.MaxUint32, test.NoAction, []byte("x"))
		f.Add(l.Bytes())
		f.Add(l.SHA1Form())
		f.Add(append(l.Bytes(), make([]byte, 64)...))
		l.Events = slices.Insert(l.Events, 0, test.New().Locality(3).Events...)
		f.Add(l.Bytes())
		l.Header = test.SpecID(math.MaxUint32, test.AlgorithmOf("sha256"))
		f.Add(l.Bytes())
	}
}

// Any bytes are refused, or are a log that proves nothing beyond what replays: a machine can send
// any bytes, and PCRs that fit them.
func FuzzEventLog(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		l, err := eventlog.Parse(data)
		if err != nil {
			return
		}
		if len(data) > eventlog.MaxSize || len(l.Events) > eventlog.MaxEvents {
			t.Fatalf("%d bytes, %d events", len(data), len(l.Events))
		}
		secondOpinion(t, data)
		for _, bank := range []string{"sha256", "sha384"} {
			pcrs := l.Replay(bank)
			j, err := l.Judge(bank, pcrs)
			if (err != nil) != (pcrs == nil) {
				t.Fatalf("%v, but %d PCRs", err, len(pcrs))
			}
			if err != nil {
				continue
			}
			for pcr := range pcrs {
				if !j.Replays[pcr] && (pcr < 10 || pcr == 14) {
					t.Fatalf("PCR %d does not replay to itself", pcr)
				}
			}
			checkJudged(t, l, bank, pcrs, j)
			for _, pcr := range []int{4, 7} {
				if pcrs[pcr] == nil {
					pcrs[pcr] = bytes.Clone(pcrs[11-pcr])
				}
				if pcrs[pcr] != nil {
					pcrs[pcr][0] ^= 1
				}
			}
			if j, err = l.Judge(bank, pcrs); err != nil {
				t.Fatal(err)
			}
			checkJudged(t, l, bank, pcrs, j)
			if j.SecureBoot != "" {
				t.Fatalf("%s, though PCR 7 does not replay", j.SecureBoot)
			}
		}
		if !bytes.Equal(data, before) {
			t.Fatal("the log was changed")
		}
	})
}

// checkJudged checks what holds for everything that is judged.
func checkJudged(t *testing.T, l *eventlog.Log, bank string, pcrs map[int][]byte, j *eventlog.Judged) {
	t.Helper()
	for pcr := range j.Replays {
		if _, ok := pcrs[pcr]; !ok || pcr > 9 && pcr != 14 {
			t.Fatalf("PCR %d is judged", pcr)
		}
	}
	last := 0
	for _, e := range j.Events {
		if !j.Replays[e.PCR] || e.Number <= last || !bytes.Equal(e.Digest, l.Events[e.Number-1].Digest(bank)) {
			t.Fatalf("the event %+v", e)
		}
		last = e.Number
	}
	if (j.SecureBoot == "") != (j.NoSecureBoot != "") {
		t.Fatalf("%q, %q", j.SecureBoot, j.NoSecureBoot)
	}
	for name, m := range map[string]eventlog.Measured{"db": j.DB, "dbx": j.DBX, "authorities": j.Authorities} {
		proved := len(m.Digests) > 0 || m.Partial == ""
		if proved && (!j.Replays[7] || separatorOf(l, 7, bank) == 0) {
			t.Fatalf("%s is proved without PCR 7 and its separator: %+v", name, m)
		}
	}
	if m := j.Images; (len(m.Digests) > 0 || m.Partial == "") && !j.Replays[4] {
		t.Fatalf("images are proved without PCR 4: %+v", m)
	}
	if j.SecureBoot != "" {
		checkState(t, l, bank, j)
	}
}

// checkState looks for the variable that proves a state, in another way than the package does.
func checkState(t *testing.T, l *eventlog.Log, bank string, j *eventlog.Judged) {
	t.Helper()
	found := 0
	for _, value := range [][]byte{{}, {0}, {1}} {
		e := test.Event{Type: test.VariableConfig, Data: test.Variable(test.Global, "SecureBoot", value)}
		for i := range l.Events[:max(separatorOf(l, 7, bank)-1, 0)] {
			of := &l.Events[i]
			if of.PCR != 7 || of.Type == test.NoAction || !bytes.Equal(of.Digest(bank), e.Digest(bank)) {
				continue
			}
			found++
			if (len(value) == 1 && value[0] == 1) != (j.SecureBoot == "enabled") {
				t.Fatalf("event %d has the value %d: %s", of.Number, value, j.SecureBoot)
			}
		}
	}
	if found != 1 || !j.Replays[7] {
		t.Fatalf("%s by %d events", j.SecureBoot, found)
	}
}

// separatorOf returns the number of the first separator of a PCR, or 0.
func separatorOf(l *eventlog.Log, pcr uint32, bank string) int {
	e := test.Event{Type: test.Separator, Data: make([]byte, 4)}
	for i := range l.Events {
		of := &l.Events[i]
		if of.PCR == pcr && of.Type != test.NoAction && bytes.Equal(of.Digest(bank), e.Digest(bank)) {
			return of.Number
		}
	}
	return 0
}
