package eventlog_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	test "github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

func parse(tb testing.TB, data []byte) *eventlog.Log {
	tb.Helper()
	l, err := eventlog.Parse(data)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// empty is an event of PCR 1 without data, in the SHA-256 form.
func empty() test.Event { return test.Event{PCR: 1, Type: test.Action} }

// A log that breaks a limit or its own header cannot be read, whoever made it, and the error says
// why. None takes more time or memory than its bytes are worth.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	sha256, sha1 := test.AlgorithmOf("sha256"), test.AlgorithmOf("sha1")
	log := func() *test.Log { return test.New().Text(1, "text") }
	header := func(data []byte) []byte {
		l := log()
		l.Header = data
		return l.Bytes()
	}
	// patched is a log of one event, whose bytes from its beginning on are replaced.
	patched := func(at int, b []byte) []byte {
		data := log().Bytes()
		begin := len(test.New().Bytes())
		return append(data[:begin+at:begin+at], append(b, data[min(begin+at+len(b), len(data)):]...)...)
	}
	u32 := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
	many := test.New()
	for range eventlog.MaxEvents + 1 {
		many.AddEvent(empty())
	}
	big := test.New().Add(1, test.Action, make([]byte, eventlog.MaxSize))
	const digests, first, size = 8, 12, 12 + 2 + 32

	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"zero bytes":                 {nil, "empty"},
		"too large":                  {big.Bytes(), "at most 262144 are allowed"},
		"too many events":            {many.Bytes(), "more than 4096 events"},
		"a million empty events":     {bytes.Repeat(u32(0), 8<<20), "at most 262144 are allowed"},
		"no algorithm":               {header(test.SpecID(0)), "0 hash algorithms"},
		"one algorithm too many":     {header(test.SpecID(2, sha256)), "too early"},
		"four billion algorithms":    {header(test.SpecID(math.MaxUint32, sha256)), "4294967295 hash algorithms"},
		"an algorithm twice":         {header(test.SpecID(2, sha256, sha256)), "announced twice"},
		"twice, by another size":     {header(test.SpecID(2, sha256, test.Algorithm{ID: 0xb, Size: 20})), "20 bytes"},
		"a size of 0":                {header(test.SpecID(2, sha256, test.Algorithm{ID: 0x27})), "0 bytes"},
		"a size of 65535":            {header(test.SpecID(2, sha256, test.Algorithm{ID: 0x27, Size: 65535})), "65535 bytes"},
		"bytes behind the header":    {header(append(test.SpecID(1, sha256), 0)), "bytes follow"},
		"half a header":              {header(test.SpecID(1, sha256)[:20]), "too early"},
		"a future header":            {header([]byte("Spec ID Event04\x00")), "not known"},
		"version 3":                  {header([]byte("Spec ID Event03\x00\x00\x00\x00\x00\x00\x03\x00\x02")), "version 3"},
		"no digest":                  {patched(digests, u32(0)), "event 1, at byte 65: 0 digests"},
		"one digest too many":        {patched(digests, u32(2)), "2 digests"},
		"2^32-1 digests":             {patched(digests, u32(math.MaxUint32)), "4294967295 digests"},
		"a digest of another hash":   {patched(first, []byte{4, 0}), "0x0004, which is not announced"},
		"data of 2^32-1 bytes":       {patched(size, u32(math.MaxUint32)), "too early"},
		"data of one byte too many":  {patched(size, u32(5)), "too early"},
		"trailing zeros":             {append(log().Bytes(), make([]byte, 4096)...), "event 2, at byte 119: zeros"},
		"one trailing zero":          {append(log().Bytes(), 0), "zeros"},
		"trailing zeros, SHA-1 form": {append(log().SHA1Form(), make([]byte, 64)...), "zeros"},
		"zeros only":                 {make([]byte, 4096), "zeros"},
		"text":                       {[]byte("binary_bios_measurements: Permission denied\n"), "too early"},
		"a digest twice": {func() []byte {
			l := test.New("sha256", "sha1").AddEvent(empty())
			l.Header = test.SpecID(2, sha256, sha1)
			b := l.Bytes()
			at := bytes.LastIndex(b, []byte{4, 0})
			return slices.Concat(b[:at], []byte{0xb, 0}, make([]byte, 32), u32(0))
		}(), "0x000b, which is not announced or comes twice"},
	} {
		l, err := eventlog.Parse(c.data)
		if err == nil || l != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want: %s", name, err, c.want)
		}
	}
}

// What real firmware writes can be read: unknown banks and types, events of no PCR, no events.
func TestReadable(t *testing.T) {
	t.Parallel()
	full := test.New()
	for range eventlog.MaxEvents {
		full.AddEvent(empty())
	}
	unknown := test.New("sha256")
	unknown.Header = test.SpecID(3, test.Algorithm{ID: 0x27, Size: 32}, test.AlgorithmOf("sha256"), test.Algorithm{ID: 0x12, Size: 32})
	old := test.New("sha1").Add(0, test.NoAction, []byte("Spec ID Event02\x00")).Text(1, "text")
	for name, c := range map[string]struct {
		data   []byte
		events int
		banks  string
	}{
		"no events":       {test.New("sha1", "sha384").Bytes(), 0, "sha1 sha384"},
		"all events":      {full.Bytes(), eventlog.MaxEvents, "sha256"},
		"unknown banks":   {unknown.Bytes(), 0, "0x0027 sha256 sm3_256"},
		"PCR 0xFFFFFFFF":  {test.New().Add(math.MaxUint32, test.NoAction, nil).Text(99, "text").Bytes(), 2, "sha256"},
		"old SHA-1 form":  {old.SHA1Form(), 2, "sha1"},
		"sha1, no header": {test.New("sha1").Text(1, "text").SHA1Form(), 1, "sha1"},
	} {
		l := parse(t, c.data)
		if len(l.Events) != c.events || strings.Join(l.Banks, " ") != c.banks {
			t.Errorf("%s: %d events, banks %q", name, len(l.Events), l.Banks)
		}
		for i, e := range l.Events {
			if e.Number != i+1 {
				t.Errorf("%s: event %d has the number %d", name, i, e.Number)
			}
		}
	}
}

// A log that ends anywhere is an error, or has the events up to there: no PCR replays of which
// an event is missing, so a machine cannot leave the end of a boot out.
func TestCutAtEveryByte(t *testing.T) {
	t.Parallel()
	did := test.Boot{Banks: []string{"sha1", "sha256"}}.Log().Locality(3)
	did.Events = append(did.Events[len(did.Events)-1:], did.Events[:len(did.Events)-1]...) // the locality first
	whole, pcrs := did.Bytes(), did.PCRs("sha256")
	last := make(map[int]int) // the number of each PCR's last event
	for i, e := range did.Events {
		last[int(e.PCR)] = i + 1
	}
	for n := range whole {
		l, err := eventlog.Parse(whole[:n])
		if err != nil {
			continue
		}
		j, err := l.Judge("sha256", pcrs)
		if err != nil {
			continue
		}
		for pcr, replays := range j.Replays {
			if replays != (last[pcr] <= len(l.Events)) && pcr != 8 {
				t.Errorf("%d bytes, %d events: PCR %d replays: %v", n, len(l.Events), pcr, replays)
			}
		}
		if (j.SecureBoot == "enabled") != j.Replays[7] || (j.Images.Partial == "") != j.Replays[4] {
			t.Errorf("%d bytes: %q, %q", n, j.SecureBoot, j.Images.Partial)
		}
	}
	whole = did.SHA1Form()
	for n := range whole {
		if l, err := eventlog.Parse(whole[:n]); err == nil {
			if _, err := l.Judge("sha256", pcrs); err == nil {
				t.Errorf("%d bytes of the SHA-1 form are held against the bank sha256", n)
			}
		}
	}
}

// The largest log that can be read costs no more memory than a few times its size: strangers send it.
//
//nolint:paralleltest // it counts what is allocated
func TestMemory(t *testing.T) {
	l := test.New("sha256")
	for range eventlog.MaxEvents {
		l.AddEvent(test.Event{PCR: 7, Type: test.Action, Data: []byte("x"), Measured: []byte{1}})
	}
	l.Events[0] = test.Event{PCR: 7, Type: test.Action, Data: test.Variable(test.Global, "SecureBoot", []byte{1})}
	data, pcrs := l.Bytes(), l.PCRs("sha256")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	j, err := parse(t, data).Judge("sha256", pcrs)
	runtime.ReadMemStats(&after)
	if err != nil || !j.Replays[7] {
		t.Fatalf("%v, %+v", err, j)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16*eventlog.MaxSize {
		t.Errorf("%d bytes for a log of %d", used, len(data))
	}
}

// The bank that was quoted decides: a log that has no digests of it proves nothing, and SHA-1 never does.
func TestBanks(t *testing.T) {
	t.Parallel()
	boot := test.Boot{Banks: []string{"sha1", "sha384"}}.Log()
	lacks := test.New("sha256", "sha384").Text(10, "text").Bytes()
	i := bytes.LastIndex(lacks, []byte{0xb, 0}) // the digest in sha256
	lacks = slices.Delete(lacks, i, i+2+32)
	lacks[i-4] = 1 // digests
	for _, c := range []struct {
		data       []byte
		bank, want string
	}{
		{boot.Bytes(), "sha384", ""},
		{boot.Bytes(), "sha256", "no digests of the bank sha256"},
		{boot.Bytes(), "", "no digests of the bank"},
		{boot.Bytes(), "sha1", "SHA-1 is broken"},
		{boot.SHA1Form(), "sha256", "no digests of the bank sha256"},
		{boot.SHA1Form(), "sha1", "SHA-1 is broken"},
		{lacks, "sha384", ""},
		{lacks, "sha256", "event 1 has no digest of the bank sha256"},
	} {
		pcrs := map[int][]byte{}
		if c.want == "" {
			pcrs = boot.PCRs(c.bank)
		}
		l := parse(t, c.data)
		j, err := l.Judge(c.bank, pcrs)
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || j != nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%v, %v, want: %s", j, err, c.want)
		}
		if replayed := l.Replay(c.bank); c.bank != "sha1" && (replayed == nil) != (c.want != "") {
			t.Errorf("replayed in the bank %q: %v", c.bank, replayed)
		}
	}
}

// An event without a log has no digests: a zero value is no reason for a panic.
func TestZeroEvent(t *testing.T) {
	t.Parallel()
	var e eventlog.Event
	if d := e.Digest("sha256"); d != nil {
		t.Errorf("%x", d)
	}
}
