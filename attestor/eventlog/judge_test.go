package eventlog_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	test "github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// judge compares what a machine says with what it did.
func judge(tb testing.TB, says *test.Log, pcrs map[int][]byte) *eventlog.Judged {
	tb.Helper()
	j, err := parse(tb, says.Bytes()).Judge("sha256", pcrs)
	if err != nil {
		tb.Fatal(err)
	}
	return j
}

// honest judges a log that says what the machine did.
func honest(tb testing.TB, did *test.Log) *eventlog.Judged {
	tb.Helper()
	return judge(tb, did, did.PCRs("sha256"))
}

func hash(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

// sorted returns the hashes of entries as a Measured has them.
func sorted(entries ...[]byte) [][]byte {
	var all [][]byte
	for _, e := range entries {
		all = append(all, hash(e))
	}
	slices.SortFunc(all, bytes.Compare)
	return all
}

// nothingOfPCR7 checks that nothing that PCR 7 would prove is proved.
func nothingOfPCR7(t *testing.T, name string, j *eventlog.Judged) {
	t.Helper()
	if j.SecureBoot != "" || j.NoSecureBoot == "" {
		t.Errorf("%s: the state %q, %q", name, j.SecureBoot, j.NoSecureBoot)
	}
	for set, m := range map[string]eventlog.Measured{"db": j.DB, "dbx": j.DBX, "authorities": j.Authorities} {
		if len(m.Digests) > 0 || m.Partial == "" {
			t.Errorf("%s: %s: %d digests, %q", name, set, len(m.Digests), m.Partial)
		}
	}
}

// variable returns the place of the variable in PCR 7 that was measured n-th, from 0.
const secureBoot, pk, kek, db, dbx = 0, 1, 2, 3, 4

// An honest machine proves its whole boot, in both banks.
func TestBoot(t *testing.T) {
	t.Parallel()
	db1, db2, forbidden := test.Certificate("one"), test.Certificate("two"), hash([]byte("forbidden"))
	did := test.Boot{
		Banks: []string{"sha256", "sha384"}, DB: [][]byte{db1, db2, db1}, DBX: [][]byte{forbidden},
		Authorities: [][]byte{db2, db2}, Images: [][]byte{[]byte("shim"), []byte("kernel"), []byte("shim")},
	}.Log()
	want := &eventlog.Judged{
		Replays:     map[int]bool{0: true, 1: true, 2: true, 3: true, 4: true, 5: true, 6: true, 7: true, 8: true, 9: true, 14: true},
		SecureBoot:  "enabled",
		DB:          eventlog.Measured{Digests: sorted(db1, db2)},
		DBX:         eventlog.Measured{Digests: [][]byte{forbidden}},
		Authorities: eventlog.Measured{Digests: sorted(db2)},
		Images:      eventlog.Measured{Digests: sorted([]byte("shim"), []byte("kernel"))},
	}
	l := parse(t, did.Bytes())
	for i, e := range did.Events {
		want.Events = append(want.Events, eventlog.JudgedEvent{
			PCR: int(e.PCR), Number: i + 1, Digest: e.Digest("sha256"), What: l.Events[i].What(),
		})
	}
	if diff := cmp.Diff(want, honest(t, did)); diff != "" {
		t.Error(diff)
	}
	j, err := l.Judge("sha384", did.PCRs("sha384"))
	if err != nil {
		t.Fatal(err)
	}
	if j.SecureBoot != "enabled" || len(j.Images.Digests) != 2 || len(j.Images.Digests[0]) != 48 ||
		!cmp.Equal(j.DB, want.DB) || !cmp.Equal(j.Authorities, want.Authorities) {
		t.Errorf("in the bank sha384: %+v", j)
	}
}

// A log is judged by the PCRs that were quoted, of 0 to 7 and 14, and by 8 and 9 if they replay. Systems extend
// the others while they run, so that a log never replays to them.
func TestWhichPCRs(t *testing.T) {
	t.Parallel()
	did := test.Boot{}.Log()
	for pcr := range uint32(24) {
		did.Text(pcr, "more")
	}
	pcrs := did.PCRs("sha256")
	other := maps.Clone(pcrs)
	for pcr := range other {
		other[pcr] = hash([]byte("other"))
	}
	all := func(replays bool, indices ...int) map[int]bool {
		m := make(map[int]bool)
		for _, i := range indices {
			m[i] = replays
		}
		return m
	}
	for name, c := range map[string]struct {
		quoted map[int][]byte
		want   map[int]bool
	}{
		"all":             {pcrs, all(true, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)},
		"none replays":    {other, all(false, 0, 1, 2, 3, 4, 5, 6, 7, 14)},
		"some":            {map[int][]byte{4: pcrs[4], 9: other[9], 10: pcrs[10]}, all(true, 4)},
		"none":            {nil, all(true)},
		"short and long":  {map[int][]byte{4: pcrs[4][:31], 7: append(pcrs[7][:32:32], 0), 8: nil}, all(false, 4, 7)},
		"no PCRs of ours": {map[int][]byte{-1: nil, 24: pcrs[7], math.MaxInt: nil}, all(true)},
	} {
		j := judge(t, did, c.quoted)
		if !maps.Equal(j.Replays, c.want) {
			t.Errorf("%s: %v, want %v", name, j.Replays, c.want)
		}
		for _, e := range j.Events {
			if !j.Replays[e.PCR] {
				t.Errorf("%s: an event of PCR %d, which does not replay", name, e.PCR)
			}
		}
		if c.quoted[7] == nil || !j.Replays[7] {
			nothingOfPCR7(t, name, j)
		}
		if !j.Replays[4] && (len(j.Images.Digests) > 0 || j.Images.Partial == "") {
			t.Errorf("%s: %+v", name, j.Images)
		}
	}
}

// A PCR without events replays only if it was never extended: otherwise a machine could leave out
// the events that speak against it.
func TestNoEvents(t *testing.T) {
	t.Parallel()
	did := test.Boot{}.Log()
	pcrs := did.PCRs("sha256")
	for pcr := range uint32(8) {
		says := did.Clone()
		says.Events = slices.DeleteFunc(says.Events, func(e test.Event) bool { return e.PCR == pcr })
		j := judge(t, says, pcrs)
		if j.Replays[int(pcr)] || len(j.Replays) != 11 {
			t.Errorf("PCR %d: %v", pcr, j.Replays)
		}
		if pcr == 7 {
			nothingOfPCR7(t, "without events", j)
		}
		if pcr == 4 && j.Images.Partial == "" {
			t.Error("images without an event")
		}
	}
	if _, ok := parse(t, test.New().Text(7, "x").Bytes()).Replay("sha256")[6]; ok {
		t.Error("a PCR without events has a value")
	}
	// Firmware that measures nothing: the log is honest, and proves nothing.
	none := honest(t, test.New())
	if !none.Replays[7] || len(none.Images.Digests) > 0 || none.Images.Partial == "" {
		t.Errorf("%+v", none)
	}
	nothingOfPCR7(t, "firmware that does not measure", none)
	// A startup locality is a value, and no event.
	if j := honest(t, test.New().Locality(3)); j.Replays[0] {
		t.Error("PCR 0 replays by its locality alone")
	}
}

// PCR 0 begins with the startup locality. If the log says it twice, late, or says what cannot be, PCR 0 does not
// replay, and the others do.
func TestStartupLocality(t *testing.T) {
	t.Parallel()
	text := func(l *test.Log) *test.Log { return l.Text(0, "text").Text(1, "text") }
	for name, c := range map[string]struct {
		did      *test.Log
		replays  bool
		locality uint8
	}{
		"none":            {text(test.New()), true, 0},
		"0":               {text(test.New().Locality(0)), true, 0},
		"3":               {text(test.New().Locality(3)), true, 3},
		"4":               {text(test.New().Locality(4)), true, 4},
		"behind others":   {text(test.New().Text(1, "first").Add(0, test.NoAction, []byte("SP800-155 Event")).Locality(3)), true, 3},
		"of another PCR":  {text(test.New().Add(1, test.NoAction, []byte("StartupLocality\x00\x03"))), true, 0},
		"1":               {text(test.New().Locality(1)), false, 0},
		"255":             {text(test.New().Locality(255)), false, 0},
		"twice":           {text(test.New().Locality(3).Locality(3)), false, 0},
		"late":            {text(test.New()).Locality(3), false, 0},
		"none, then late": {text(test.New().Locality(0)).Locality(3), false, 0},
		"without a value": {text(test.New().Add(0, test.NoAction, []byte("StartupLocality\x00"))), false, 0},
		"another form":    {text(test.New().Add(0, test.NoAction, []byte("StartupLocality3\x03"))), false, 0},
	} {
		l := parse(t, c.did.Bytes())
		locality, err := l.StartupLocality()
		if locality != c.locality || (err == nil) != c.replays {
			t.Errorf("%s: the locality is %d, %v", name, locality, err)
		}
		j := honest(t, c.did)
		if j.Replays[0] != c.replays || !j.Replays[1] {
			t.Errorf("%s: %v", name, j.Replays)
		}
		if _, ok := l.Replay("sha256")[0]; ok != c.replays {
			t.Errorf("%s: PCR 0 comes to something: %v", name, ok)
		}
	}
	// The locality is measured: who says another one does not replay.
	did, says := text(test.New().Locality(3)), text(test.New().Locality(4))
	if judge(t, says, did.PCRs("sha256")).Replays[0] {
		t.Error("another locality replays")
	}
}

// The type of an event is not verified: whichever a machine gives it, the log proves the same, or the PCR does not
// replay, if the event claims to extend nothing.
func TestTypesMeanNothing(t *testing.T) {
	t.Parallel()
	types := []uint32{
		0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x12, 0x13, 0x8401, 0x80000000,
		0x80000001, 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008,
		0x80000009, 0x8000000a, 0x80000010, 0x800000e0, 0x800000e1, math.MaxUint32,
	}
	for _, value := range []byte{0, 1} {
		did := test.Boot{SecureBoot: []byte{value}}.Log()
		pcrs := did.PCRs("sha256")
		want := honest(t, did)
		for i := range did.Events {
			for _, typ := range types {
				says := did.Clone()
				says.Events[i].Type = typ
				says.Events[i].Digests = map[string][]byte{"sha256": did.Events[i].Digest("sha256")}
				j := judge(t, says, pcrs)
				if pcr := int(did.Events[i].PCR); typ == test.NoAction {
					if j.Replays[pcr] {
						t.Errorf("event %d as EV_NO_ACTION: PCR %d replays", i+1, pcr)
					}
					continue
				}
				for k := range j.Events { // what is for people
					j.Events[k].What = want.Events[k].What
				}
				if !reflect.DeepEqual(want, j) {
					t.Fatalf("event %d with the type %#x: %s", i+1, typ, cmp.Diff(want, j))
				}
			}
		}
	}
}

// Somebody who controls a machine without Secure Boot cannot make a log that says otherwise.
func TestForgedSecureBoot(t *testing.T) {
	t.Parallel()
	did := test.Boot{SecureBoot: []byte{0}}.Log()
	pcrs := did.PCRs("sha256")
	on := test.Variable(test.Global, "SecureBoot", []byte{1})
	at := func(n int) int { return did.Index(7, n) }
	separatorAt := at(5)
	for name, forge := range map[string]func(l *test.Log){
		"the variable's data are altered":    func(l *test.Log) { l.Events[at(secureBoot)].Data = on },
		"its digest too":                     func(l *test.Log) { l.Events[at(secureBoot)] = test.Event{PCR: 7, Data: on} },
		"data of another event":              func(l *test.Log) { l.Events[at(pk)].Data = on },
		"an event more, before":              func(l *test.Log) { l.Events = slices.Insert(l.Events, 0, test.Event{PCR: 7, Data: on}) },
		"an event more, behind":              func(l *test.Log) { l.Add(7, test.VariableConfig, on) },
		"an event more that extends nothing": func(l *test.Log) { l.Add(7, test.NoAction, on) },
		"an event of another PCR":            func(l *test.Log) { l.Add(math.MaxUint32, test.VariableConfig, on) },
		"the variable is of another PCR":     func(l *test.Log) { l.Events[at(secureBoot)].PCR = 1 },
		"no event":                           func(l *test.Log) { l.Events = nil },
		"no separator":                       func(l *test.Log) { l.Events = slices.Delete(l.Events, separatorAt, separatorAt+1) },
		"no separator, and a variable":       func(l *test.Log) { l.Events[separatorAt].Data = on },
		"the digest of another": func(l *test.Log) {
			l.Events[at(secureBoot)].Measured = on
		},
		"two events change places": func(l *test.Log) {
			l.Events[at(pk)], l.Events[at(kek)] = l.Events[at(kek)], l.Events[at(pk)]
		},
	} {
		says := did.Clone()
		for i := range says.Events { // digests stay, unless they are altered
			e := &says.Events[i]
			if e.Measured == nil {
				e.Measured = e.Data
			}
		}
		forge(says)
		if j := judge(t, says, pcrs); j.SecureBoot == "enabled" {
			t.Errorf("%s: %+v", name, j)
		} else if j.SecureBoot != "" && !j.Replays[7] {
			t.Errorf("%s: %q, though PCR 7 does not replay", name, j.SecureBoot)
		}
	}
}

// The state of Secure Boot, of machines that say what they did.
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	variable := func(guid, name string, value ...byte) test.Event {
		return test.Event{PCR: 7, Type: test.VariableConfig, Data: test.Variable(guid, name, value)}
	}
	text := func(s string) test.Event { return test.Event{PCR: 7, Type: test.EFIAction, Data: []byte(s)} }
	hide := func(e test.Event) test.Event {
		e.Measured, e.Data = e.Data, []byte("hidden")
		return e
	}
	padded := func(e test.Event) test.Event { // as old versions of shim measure, and log a byte more
		e.Measured = slices.Concat(e.Data, make([]byte, 5))
		e.Data = slices.Concat(e.Measured, []byte{0xaf})
		return e
	}
	on, off := variable(test.Global, "SecureBoot", 1), variable(test.Global, "SecureBoot", 0)
	end := test.Event{PCR: 7, Type: test.Separator, Data: make([]byte, 4)}
	otherEnd := func(b ...byte) test.Event { return test.Event{PCR: 7, Type: test.Separator, Data: b} }
	oddEnd := test.Event{PCR: 7, Type: 0x8401, Data: []byte("hidden"), Measured: make([]byte, 4)}
	for name, c := range map[string]struct {
		events []test.Event
		state  string
		why    string
	}{
		"1":                         {[]test.Event{on, end}, "enabled", ""},
		"0":                         {[]test.Event{off, end}, "disabled", ""},
		"empty":                     {[]test.Event{variable(test.Global, "SecureBoot"), end}, "disabled", ""},
		"a separator by its digest": {[]test.Event{on, oddEnd}, "enabled", ""},
		"other events":              {[]test.Event{text("DMA Protection Disabled"), on, hide(text("something")), end}, "enabled", ""},
		"a byte too many":           {[]test.Event{padded(on), end}, "", "not the global variable"},
		"no separator":              {[]test.Event{on}, "", "no separator"},
		"an error separator":        {[]test.Event{on, otherEnd(0xff, 0xff, 0xff, 0xff)}, "", "no separator"},
		// Firmware has ended its measurements without the variable; the system adds what is missing.
		"all behind the other separator":        {[]test.Event{otherEnd(0xff, 0xff, 0xff, 0xff), on, end}, "", "another separator (event 1)"},
		"all behind an error separator":         {[]test.Event{otherEnd(1, 0, 0, 0), on, end}, "", "another separator (event 1)"},
		"all behind one in the other order":     {[]test.Event{otherEnd(0, 0, 0, 1), on, end}, "", "another separator (event 1)"},
		"all behind an error separator, hidden": {[]test.Event{hide(otherEnd(1, 0, 0, 0)), on, end}, "", "another separator (event 1)"},
		"an error separator behind":             {[]test.Event{on, end, otherEnd(1, 0, 0, 0)}, "enabled", ""},
		"no variable":                           {[]test.Event{end}, "", "no variable SecureBoot"},
		"1 behind the separator":                {[]test.Event{end, on}, "", "no variable SecureBoot"},
		"1 between two separators":              {[]test.Event{end, on, end}, "", "no variable SecureBoot"},
		"1 after 0":                             {[]test.Event{off, on, end}, "", "more than one variable SecureBoot before its separator (events 1 and 2)"},
		"1 twice":                               {[]test.Event{on, on, end}, "", "more than one"},
		"1 after a 0 that is hidden":            {[]test.Event{hide(off), on, end}, "", "more than one"},
		"0 before, 1 behind":                    {[]test.Event{off, end, on}, "disabled", ""},
		"1 before, 0 behind":                    {[]test.Event{on, end, off}, "enabled", ""},
		"hidden":                                {[]test.Event{hide(on), end}, "", "do not hash to its digest"},
		"2":                                     {[]test.Event{variable(test.Global, "SecureBoot", 2), end}, "", "neither empty nor 0 nor 1"},
		"two bytes":                             {[]test.Event{variable(test.Global, "SecureBoot", 1, 0), end}, "", "neither empty nor 0 nor 1"},
		"two bytes, 0":                          {[]test.Event{variable(test.Global, "SecureBoot", 0, 1), end}, "", "neither empty nor 0 nor 1"},
		"another GUID":                          {[]test.Event{variable(test.Shim, "SecureBoot", 1), end}, "", "not the global variable"},
		"another GUID too":                      {[]test.Event{off, variable(test.Shim, "SecureBoot", 1), end}, "", "more than one"},
		"another name":                          {[]test.Event{variable(test.Global, "SecureBoot\x00", 1), end}, "", "no variable SecureBoot"},
		"UEFI Debug Mode":                       {[]test.Event{text("UEFI Debug Mode"), on, end}, "", "UEFI Debug Mode (event 1)"},
		"UEFI Debug Mode, hidden":               {[]test.Event{on, hide(text("UEFI Debug Mode")), end}, "", "UEFI Debug Mode (event 2)"},
		"UEFI Debug Mode, disabled":             {[]test.Event{off, text("UEFI Debug Mode"), end}, "disabled", ""},
		"MokSBState 1":                          {[]test.Event{on, end, variable(test.Shim, "MokSBState", 1)}, "", "MokSBState is set (event 3)"},
		"MokSBState 1, before":                  {[]test.Event{variable(test.Shim, "MokSBState", 1), on, end}, "", "MokSBState is set (event 1)"},
		"MokSBState 1, hidden":                  {[]test.Event{on, end, hide(variable(test.Shim, "MokSBState", 1))}, "", "MokSBState is set (event 3)"},
		"MokSBState 1, old shim":                {[]test.Event{on, end, padded(variable(test.Shim, "MokSBState", 1))}, "", "MokSBState is set"},
		"MokSBState 1, old shim, hidden": {[]test.Event{on, end, func() test.Event {
			e := padded(variable(test.Shim, "MokSBState", 1))
			e.Data = nil
			return e
		}()}, "", "MokSBState is set"},
		"MokSBState 1, old shim of 32 bits, hidden": {[]test.Event{on, end, func() test.Event {
			e := variable(test.Shim, "MokSBState", 1)
			e.Measured, e.Data = slices.Concat(e.Data, []byte{0}), nil
			return e
		}()}, "", "MokSBState is set"},
		"MokSBState 0":           {[]test.Event{on, end, variable(test.Shim, "MokSBState", 0)}, "enabled", ""},
		"MokSBState 1, disabled": {[]test.Event{off, end, variable(test.Shim, "MokSBState", 1)}, "disabled", ""},
	} {
		l := test.New()
		l.Events = c.events
		j := honest(t, l)
		if j.SecureBoot != c.state || !strings.Contains(j.NoSecureBoot, c.why) || (c.why == "") != (j.NoSecureBoot == "") {
			t.Errorf("%s: %q, %q, want %q, %q", name, j.SecureBoot, j.NoSecureBoot, c.state, c.why)
		}
	}
}

// An image is every digest in PCR 4 but those that are known to be of something else: a program that is logged
// as a text, with its own bytes as data so that they hash to the digest, is still a program.
func TestImages(t *testing.T) {
	t.Parallel()
	program := []byte("MZ\x90\x00 a program")
	calling := "Calling EFI Application from Boot Option"
	l := test.New().Text(4, calling).Separators(4).Image(program)
	l.Text(4, "Returning from EFI Application from Boot Option").Text(4, calling)
	l.Add(4, test.EFIAction, []byte("MZ another program"))
	l.AddEvent(test.Event{PCR: 4, Type: test.Separator, Data: make([]byte, 4), Measured: []byte("a third")})
	l.AddEvent(test.Event{PCR: 4, Type: test.NoAction, Data: []byte("extends nothing")})
	l.Text(4, calling+"\x00").Text(5, "of another PCR")
	want := sorted(program, []byte("MZ another program"), []byte("a third"), []byte(calling+"\x00"))
	if j := honest(t, l); !cmp.Equal(j.Images, eventlog.Measured{Digests: want}) {
		t.Errorf("%x, want %x", j.Images, want)
	}
}

// With `only`, what cannot be verified could be what is not allowed: the set says so. Which events these are
// depends on the set.
func TestPartial(t *testing.T) {
	t.Parallel()
	hash32 := make([]byte, 32)
	for name, c := range map[string]struct {
		change func(l *test.Log)
		// Parts of what is said, empty if the set is whole.
		db, dbx, authorities string
		// Whether the set has its digests.
		hasDB, hasDBX, hasAuthorities bool
	}{
		"nothing": {func(*test.Log) {}, "", "", "", true, true, true},
		"KEK is hidden": {
			func(l *test.Log) { hide(l, kek) },
			"event 4, before the separator of PCR 7, cannot be verified", "event 4, before", "", true, true, true,
		},
		"db is hidden":  {func(l *test.Log) { hide(l, db) }, "has the variable db 0 times", "event 5, before", "", false, true, true},
		"dbx is hidden": {func(l *test.Log) { hide(l, dbx) }, "event 6, before", "has the variable dbx 0 times", "", true, false, true},
		"an authority is hidden": {
			func(l *test.Log) { hide(l, 6) },
			"", "", "event 17, behind the separator of PCR 7, cannot be verified", true, true, false,
		},
		"another event is hidden": {func(l *test.Log) {
			l.Text(7, "last")
			hide(l, 7)
		}, "", "", "behind the separator of PCR 7, cannot be verified", true, true, true},
		"db twice": {func(l *test.Log) {
			l.Events = slices.Insert(l.Events, 0, l.Events[l.Index(7, db)])
		}, "has the variable db 2 times", "", "", false, true, true},
		"dbx twice": {func(l *test.Log) {
			l.Events = slices.Insert(l.Events, 0, l.Events[l.Index(7, dbx)])
		}, "", "has the variable dbx 2 times", "", true, false, true},
		"db of another GUID": {func(l *test.Log) {
			l.Events[l.Index(7, db)].Data = test.Variable(test.Global, "db", test.Database(test.X509, test.Certificate("db")))
		}, "has the variable db 0 times", "", "", false, true, true},
		"db behind the separator": {func(l *test.Log) {
			l.Config(test.Security, "db", test.Database(test.X509, test.Certificate("more")))
		}, "", "", "is a variable without a certificate", true, true, true},
		"db with a hash": {func(l *test.Log) {
			l.Events[l.Index(7, db)].Data = test.Variable(test.Security, "db",
				append(test.Database(test.X509, test.Certificate("db")), test.Database(test.SHA256, hash32, hash32)...))
		}, "has 2 entries of another kind", "", "", true, true, true},
		"db with half a certificate": {func(l *test.Log) {
			half := test.Certificate("db")[:3]
			l.Events[l.Index(7, db)].Data = test.Variable(test.Security, "db", test.Database(test.X509, half))
		}, "has 1 entries of another kind", "", "", false, true, true},
		"db with bytes behind a certificate": {func(l *test.Log) {
			long := append(test.Certificate("db"), 0)
			l.Events[l.Index(7, db)].Data = test.Variable(test.Security, "db", test.Database(test.X509, long))
		}, "has 1 entries of another kind", "", "", false, true, true},
		"empty databases": {func(l *test.Log) {
			l.Events[l.Index(7, db)].Data = test.Variable(test.Security, "db", nil)
			l.Events[l.Index(7, dbx)].Data = test.Variable(test.Security, "dbx", nil)
		}, "", "", "", false, false, true},
		"dbx with a certificate": {func(l *test.Log) {
			l.Events[l.Index(7, dbx)].Data = test.Variable(test.Security, "dbx",
				append(test.Database(test.SHA256, hash32), test.Database(test.X509, test.Certificate("x"))...))
		}, "", "has 1 entries of another kind", "", true, true, true},
		"dbx with short hashes": {func(l *test.Log) {
			l.Events[l.Index(7, dbx)].Data = test.Variable(test.Security, "dbx", test.Database(test.SHA256, hash32[:20]))
		}, "", "has 1 entries of another kind", "", true, false, true},
		"an authority by hash": {
			func(l *test.Log) { l.Authority(test.Security, "db", test.Signature(hash32)) },
			"", "", "is a variable without a certificate", true, true, true,
		},
		"another structure": {
			func(l *test.Log) { l.Add(7, test.VariableAuthority, test.Signature(test.Certificate("x"))) },
			"", "", "is not a variable", true, true, true,
		},
		"what is no authority": {func(l *test.Log) {
			l.Authority(test.Shim, "SbatLevel", []byte("sbat,1,2023012900\n")).Authority(test.Shim, "Shim", test.Certificate("vendor"))
			l.Authority(test.Shim, "MokListTrusted", []byte{1}).Authority(test.Shim, "MokSBState", []byte{0})
			l.Text(7, "DMA Protection Disabled").Separators(7)
		}, "", "", "", true, true, true},
		"no authority, by another GUID": {
			func(l *test.Log) { l.Authority(test.Global, "SbatLevel", []byte("sbat,1,2023012900\n")) },
			"", "", "is a variable without a certificate", true, true, true,
		},
	} {
		l := test.Boot{}.Log()
		c.change(l)
		j := honest(t, l)
		for _, s := range []struct {
			name, want string
			has        bool
			got        eventlog.Measured
		}{
			{"db", c.db, c.hasDB, j.DB}, {"dbx", c.dbx, c.hasDBX, j.DBX}, {"authorities", c.authorities, c.hasAuthorities, j.Authorities},
		} {
			if !strings.Contains(s.got.Partial, s.want) || (s.want == "") != (s.got.Partial == "") {
				t.Errorf("%s: %s: %q, want: %s", name, s.name, s.got.Partial, s.want)
			}
			if (len(s.got.Digests) == 1) != s.has {
				t.Errorf("%s: %s: %d digests", name, s.name, len(s.got.Digests))
			}
		}
		if j.Images.Partial != "" {
			t.Errorf("%s: images: %s", name, j.Images.Partial)
		}
	}
}

// hide makes the data of the n-th event of PCR 7 be of something else.
func hide(l *test.Log, n int) {
	e := &l.Events[l.Index(7, n)]
	e.Measured, e.Data = e.Data, []byte("hidden")
}

// Certificates that have vouched are found in what firmware writes and in what old versions of shim write.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	one, two, three := test.Certificate("one"), test.Certificate("two"), test.Certificate("three")
	l := test.Boot{Authorities: [][]byte{one}}.Log()
	l.Authority(test.Shim, "MokList", test.Signature(two)) // a key of the machine's owner
	bare := test.Variable(test.Security, "db", three)      // without an owner
	measured := slices.Concat(bare, make([]byte, 5))
	l.AddEvent(test.Event{PCR: 7, Data: slices.Concat(measured, []byte{0xaf}), Measured: measured})
	l.Authority(test.Security, "db", test.Signature(one))
	want := eventlog.Measured{Digests: sorted(one, two, three)}
	if j := honest(t, l); !cmp.Equal(j.Authorities, want) {
		t.Errorf("%+v, want %+v", j.Authorities, want)
	}
	// Eight bytes or other bytes behind a variable are not shim's.
	for _, rest := range [][]byte{make([]byte, 8), {0, 1}} {
		l := test.Boot{Authorities: [][]byte{}}.Log()
		l.Add(7, test.VariableAuthority, append(test.Variable(test.Security, "db", one), rest...))
		if j := honest(t, l); len(j.Authorities.Digests) > 0 || j.Authorities.Partial == "" {
			t.Errorf("%d bytes behind the variable: %+v", len(rest), j.Authorities)
		}
	}
}

// Structures in verified data may be a stranger's, too: sizes that are too large or too small, and
// names without an end, prove nothing and cost nothing.
func TestStructures(t *testing.T) {
	t.Parallel()
	list := func(change func(b []byte)) []byte {
		b := test.Database(test.X509, test.Certificate("db"))
		change(b)
		return b
	}
	for i, database := range [][]byte{
		{0},
		make([]byte, 27), make([]byte, 28), make([]byte, 1000),
		list(func(b []byte) { copy(b[16:], "\xff\xff\xff\xff") }), // SignatureListSize
		list(func(b []byte) { copy(b[16:], "\x1b\x00\x00\x00") }),
		list(func(b []byte) { b[16]-- }),
		list(func(b []byte) { copy(b[20:], "\xff\xff\xff\xff") }), // SignatureHeaderSize
		list(func(b []byte) { b[20] = 1 }),
		list(func(b []byte) { copy(b[24:], "\xff\xff\xff\xff") }), // SignatureSize
		list(func(b []byte) { copy(b[24:], "\x00\x00\x00\x00") }),
		list(func(b []byte) { b[24] = 16 }),
		list(func(b []byte) { b[24] = 17 }),
	} {
		l := test.Boot{}.Log()
		l.Events[l.Index(7, db)].Data = test.Variable(test.Security, "db", database)
		if j := honest(t, l); len(j.DB.Digests) > 0 || !strings.Contains(j.DB.Partial, "it is not a list of signatures") {
			t.Errorf("database %d: %+v", i, j.DB)
		}
	}
	on := test.Variable(test.Global, "SecureBoot", []byte{1})
	for i, change := range []func(b []byte) []byte{
		func(b []byte) []byte { return b[:20] },
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return append(b, 0) },
		func(b []byte) []byte { copy(b[16:], "\xff\xff\xff\xff\xff\xff\xff\xff"); return b }, // UnicodeNameLength
		func(b []byte) []byte { copy(b[16:], "\x0a\x00\x00\x00\x00\x00\x00\x80"); return b }, // times 2 is 20
		func(b []byte) []byte { copy(b[24:], "\xff\xff\xff\xff\xff\xff\xff\xff"); return b }, // VariableDataLength
	} {
		l := test.Boot{}.Log()
		l.Events[l.Index(7, secureBoot)].Data = change(bytes.Clone(on))
		if j := honest(t, l); j.SecureBoot != "" {
			t.Errorf("variable %d: %q", i, j.SecureBoot)
		}
	}
	if _, err := eventlog.ParseVariable(test.Variable(test.Global, strings.Repeat("x", 2000), nil)); err == nil {
		t.Error("a name of 2000 characters")
	}
}

// Logs contain serial numbers, disk UUIDs and command lines. Nothing that is said about a log
// quotes it, since that is logged.
func TestNothingIsQuoted(t *testing.T) {
	t.Parallel()
	const secret = "SECRET"
	names := []string{"SecureBoot", "db", "dbx", "MokSBState", secret}
	var said []string
	for _, name := range names {
		for _, value := range []string{secret, "\x01", ""} {
			for _, guid := range []string{test.Global, test.Security, test.Shim} {
				l := test.Boot{}.Log()
				l.Events = slices.Insert(l.Events, 0, test.Event{PCR: 7, Data: test.Variable(guid, name, []byte(value))})
				l.Authority(guid, name, []byte(value)).Text(7, secret).Add(0x534543, 0x534543, []byte(secret))
				l.Add(0, test.NoAction, []byte("StartupLocality\x00S")).Add(7, test.IPL, []byte("\x00"+secret))
				j := honest(t, l)
				said = append(said, j.NoSecureBoot, j.DB.Partial, j.DBX.Partial, j.Authorities.Partial, j.Images.Partial)
				for _, e := range j.Events {
					said = append(said, e.What)
				}
				data := l.Bytes()
				for n := 0; n < len(data); n += 13 {
					if _, err := eventlog.Parse(data[:n]); err != nil {
						said = append(said, err.Error())
					}
				}
			}
		}
	}
	for _, s := range said {
		if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) {
			t.Fatal(s)
		}
	}
	if len(said) < 1000 {
		t.Errorf("%d texts only", len(said))
	}
}

// The banks are independent: digests of another bank neither prove nor spoil anything, and data
// count only if they hash to the digest in the quoted bank.
func TestBanksThatDiffer(t *testing.T) {
	t.Parallel()
	did := test.Boot{Banks: []string{"sha256", "sha384"}, SecureBoot: []byte{0}}.Log()
	on := test.Event{Data: test.Variable(test.Global, "SecureBoot", []byte{1})}
	says := did.Clone()
	at := says.Index(7, secureBoot)
	says.Events[at].Data = on.Data
	says.Events[at].Digests = map[string][]byte{"sha256": did.Events[at].Digest("sha256"), "sha384": on.Digest("sha384")}
	l := parse(t, says.Bytes())
	for _, c := range []struct {
		bank, why string
		replays   bool
	}{
		{"sha256", "the data of the variable SecureBoot (event 2) do not hash to its digest", true},
		{"sha384", "the event log does not replay to PCR 7", false},
	} {
		j, err := l.Judge(c.bank, did.PCRs(c.bank))
		if err != nil {
			t.Fatal(err)
		}
		if j.Replays[7] != c.replays || j.SecureBoot != "" || j.NoSecureBoot != c.why {
			t.Errorf("%s: PCR 7 replays: %v; %q, %q", c.bank, j.Replays[7], j.SecureBoot, j.NoSecureBoot)
		}
	}
}

// The result does not keep the log in memory, and does not change with it.
func TestSharesNoMemory(t *testing.T) {
	t.Parallel()
	l := test.Boot{}.Log()
	data := l.Bytes()
	whole := bytes.Clone(data)
	judged := func(data []byte) *eventlog.Judged {
		j, err := parse(t, data).Judge("sha256", l.PCRs("sha256"))
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := judged(data)
	if !bytes.Equal(data, whole) {
		t.Error("the log was changed")
	}
	clear(data)
	if diff := cmp.Diff(judged(whole), j); diff != "" {
		t.Error(diff)
	}
}

// Types that are not known have a name too.
func TestWhat(t *testing.T) {
	t.Parallel()
	l := parse(t, test.New().Add(1, 0x8401, nil).Add(1, test.VariableAuthority, nil).Bytes())
	if a, b := l.Events[0].What(), l.Events[1].What(); a != "the event type 0x00008401" || b != "EV_EFI_VARIABLE_AUTHORITY" {
		t.Errorf("%q, %q", a, b)
	}
}
