package bootpolicy_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
)

// Old and new kernels roll out side by side, so one profile admits both. A machine with a third
// kernel is refused, and the operator is told which event differs.
func TestKernels(t *testing.T) {
	old, fresh, third := booted(usual("kernel 1")), booted(usual("kernel 2")), booted(usual("kernel 3"))
	for name, text := range map[string]string{
		"by PCR 4":  profile(pcrs(4, value(old, 4), value(fresh, 4))),
		"by images": profile(`"images": {"only": ["` + strings.Join([]string{hexOf("shim"), hexOf("grub"), hexOf("kernel 1"), hexOf("kernel 2")}, `", "`) + `"]}`),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, text)
			wantListed(t, s, old)
			wantListed(t, s, fresh)
			wantNot(t, s, third, "event 8", "EV_OF_PCR_4", hexOf("kernel 3"))
		})
	}
	t.Run("one more image", func(t *testing.T) {
		s := open(t, profile(pcrs(4, value(old, 4))))
		more := booted(append(usual("kernel 1"), event{4, "rootkit"}))
		wantNot(t, s, more, "without this event PCR 4 would have a known value, so it is new; event 9 (EV_OF_PCR_4) "+hexOf("rootkit"))
	})
}

// Before the challenge, the source cannot say anything about the boot, whatever is loaded. After
// it, a machine that has not quoted is not listed.
func TestProof(t *testing.T) {
	b := booted(usual("kernel"))
	s := open(t, profile(pcrs(4, value(b, 4))))
	before := machine(b)
	before.Proof = nil
	for _, s := range []*bootpolicy.Source{s, newSource(t, bootpolicy.Config{Path: "/none", Quote: &quote})} {
		if v, err := s.Check(t.Context(), before); !errors.Is(err, sources.ErrNeedsChallenge) || v.Listed {
			t.Errorf("before the challenge: %+v, %v", v, err)
		}
	}
	wantNot(t, s, nil, "the machine has not quoted its PCRs")
	wantNot(t, open(t, `{"serial": 7, "profiles": []}`), b, "serial 7; there are no profiles")
	// If the quote block changes between challenge and answer, a good machine must not be
	// refused for good.
	for name, change := range map[string]func(*sources.Boot){
		"another bank": func(b *sources.Boot) { b.Bank = "sha384" },
		"fewer PCRs":   func(b *sources.Boot) { delete(b.PCRs, 0) },
	} {
		b := booted(usual("kernel"))
		change(b)
		if v, err := s.Check(t.Context(), machine(b)); err == nil || !strings.Contains(err.Error(), "has to attest again") {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

// Each condition holds or not as a person would expect. Each machine here that is refused might
// otherwise have been altered.
func TestConditions(t *testing.T) {
	const on, off = `"secureboot": {"enabled": true}`, `"secureboot": {"enabled": false}`
	only := func(what string, names ...string) string {
		for i := range names {
			names[i] = hexOf(names[i])
		}
		list := `["` + strings.Join(names, `", "`) + `"]`
		switch what {
		case "images":
			return `"images": {"only": ` + list + `}`
		case "dbx":
			return `"secureboot": {"dbx": {"contains": ` + list + `}}`
		}
		return `"secureboot": {"` + what + `": {"only": ` + list + `}}`
	}
	same := func(*sources.Boot) {}
	state := func(is, why string) func(*sources.Boot) {
		return func(b *sources.Boot) { b.Log.SecureBoot, b.Log.NoSecureBoot = is, why }
	}
	replays := func(pcr int) func(*sources.Boot) { return func(b *sources.Boot) { b.Log.Replays[pcr] = false } }
	noLog := func(b *sources.Boot) { b.Log, b.NoLog = nil, "the machine sent none" }
	for _, tt := range []struct {
		name, condition string
		change          func(*sources.Boot)
		want            string // in the reason; empty if the profile is met
	}{
		{"enabled", on, same, ""},
		{"disabled", on, state("disabled", ""), "web: Secure Boot is disabled"},
		{"not proved", on, state("", "MokSBState"), "the event log does not prove that Secure Boot is enabled: MokSBState"},
		{"enabled and no replay", on, replays(7), "the event log does not lead to the quoted PCR 7"},
		{"enabled without a log", on, noLog, "there is no event log, which it needs: the machine sent none"},
		{"wanted off", off, state("disabled", ""), ""},
		{"wanted off, is on", off, same, "Secure Boot is enabled"},
		{"wanted off, not proved", off, state("", "no such variable"), "does not prove that Secure Boot is disabled: no such variable"},
		{"wanted off, no log", off, noLog, "there is no event log"},

		{"db", only("db", "db", "other"), same, ""},
		{"db with another", only("db", "other"), same, "the certificate in db " + hexOf("db") + " is new"},
		{"db with one more", only("db", "db"), func(b *sources.Boot) {
			b.Log.DB.Digests = append(b.Log.DB.Digests, digest("more"))
		}, "the certificate in db " + hexOf("more") + " is new"},
		{"db partial", only("db", "db"), func(b *sources.Boot) { b.Log.DB.Partial = "it has a hash" }, "not every certificate in db can be verified: it has a hash"},
		{"db empty", only("db", "db"), func(b *sources.Boot) { b.Log.DB.Digests = nil }, "the event log has no certificate in db"},
		{"db and no replay", only("db", "db"), replays(7), "does not lead to the quoted PCR 7"},
		{"db without a log", only("db", "db"), noLog, "there is no event log"},

		{"dbx", only("dbx", "dbx 1"), same, ""},
		{"dbx all", only("dbx", "dbx 2", "dbx 1"), same, ""},
		{"dbx without one", only("dbx", "dbx 1", "dbx 3"), same, "dbx does not have " + hexOf("dbx 3")},
		{"dbx partial", only("dbx", "dbx 1"), func(b *sources.Boot) { b.Log.DBX.Partial = "cut" }, ""},
		{"dbx partial, without one", only("dbx", "dbx 3"), func(b *sources.Boot) { b.Log.DBX.Partial = "cut" }, "dbx does not have " + hexOf("dbx 3") + " (cut)"},
		{"dbx and no replay", only("dbx", "dbx 1"), replays(7), "does not lead to the quoted PCR 7"},

		{"authorities", only("authorities", "authority"), same, ""},
		{"another authority", only("authorities", "other"), same, "the authority " + hexOf("authority") + " is new"},
		{"authorities partial", only("authorities", "authority"), func(b *sources.Boot) { b.Log.Authorities.Partial = "event 6" }, "not every authority can be verified: event 6"},
		{"no authority", only("authorities", "authority"), func(b *sources.Boot) { b.Log.Authorities.Digests = nil }, "the event log has no authority"},

		{"images", only("images", "shim", "grub", "kernel"), same, ""},
		{"another image", only("images", "shim", "grub"), same, "the image " + hexOf("kernel") + " is new (event 8, EV_OF_PCR_4)"},
		{"images partial", only("images", "shim", "grub", "kernel"), func(b *sources.Boot) { b.Log.Images.Partial = "event 3" }, "not every image can be verified: event 3"},
		{"no image", only("images", "shim"), func(b *sources.Boot) { b.Log.Images.Digests = nil }, "the event log has no image"},
		{"images and no replay", only("images", "shim", "grub", "kernel"), replays(4), "does not lead to the quoted PCR 4"},
		{"images without a log", only("images", "shim", "grub", "kernel"), noLog, "there is no event log, which it needs: the machine sent none"},
		{"images of another bank", `"images": {"only": ["` + hexOf("shim") + `"]}`, func(b *sources.Boot) {
			b.Log.Images.Digests = [][]byte{append(digest("shim"), make([]byte, 16)...)}
		}, "the image " + hexOf("shim") + "00000000000000000000000000000000 is new"},

		{"a PCR without a log", pcrs(4, value(booted(usual("kernel")), 4)), noLog, ""},
		{"a PCR that does not replay", pcrs(4, value(booted(usual("kernel")), 4)), replays(4), ""},
		{"a PCR with another value", pcrs(7, hexOf("x")), noLog, "PCR 7 has the value " + value(booted(usual("kernel")), 7)},
		{"the value of another PCR", pcrs(7, value(booted(usual("kernel")), 4)), same, "PCR 7 has the value"},
		{
			"expired", pcrs(4, value(booted(usual("kernel")), 4)) + `, "expires": "2020-01-01T00:00:00Z"`, same,
			"web: it expired at 2020-01-01T00:00:00Z",
		},
		{
			"one of two conditions", pcrs(4, value(booted(usual("kernel")), 4)) + ", " + off, same,
			"Secure Boot is enabled",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, b := open(t, profile(tt.condition)), booted(usual("kernel"))
			tt.change(b)
			if tt.want == "" {
				wantListed(t, s, b)
			} else {
				wantNot(t, s, b, tt.want)
			}
		})
	}
}

// Every profile that is met becomes a selector, and their labels too, so that selectors do not
// depend on the order of a file. A name is a list's of machines.
func TestAttributes(t *testing.T) {
	b := booted(usual("kernel"))
	known, other := pcrs(4, value(b, 4)), pcrs(4, hexOf("x"))
	s := open(t, `{"serial": 3, "profiles": [
		{"name": "web", "labels": ["tier:web", "boot:ok"], `+known+`}, {"name": "old", "labels": ["no"], `+other+`},
		{"name": "lab", "labels": ["boot:ok"], "secureboot": {"enabled": true}}]}`)
	v := wantListed(t, s, b)
	want := sources.Attributes{Labels: []string{"boot:ok", "tier:web"}, Profiles: []string{"lab", "web"}}
	if d := cmp.Diff(want, v.Attributes); d != "" || v.Reason != "serial 3; meets lab, web" {
		t.Errorf("%s (-want +got):\n%s", v.Reason, d)
	}
	labels := func(prefix string) string {
		var all []string
		for i := range 40 {
			all = append(all, fmt.Sprintf(`"%s%d"`, prefix, i))
		}
		return strings.Join(all, ",")
	}
	s = open(t, `{"profiles": [{"name": "a", "labels": [`+labels("x")+`], `+known+`}, {"name": "b", "labels": [`+labels("y")+`], `+known+`}]}`)
	if v, err := s.Check(t.Context(), machine(b)); err == nil || !strings.Contains(err.Error(), "80 labels together, more than 64") {
		t.Errorf("%+v, %v", v, err)
	}
}

// An operator who is told the wrong event, or nothing, adds to the profile whatever is there.
func TestReason(t *testing.T) {
	kernel := booted(usual("kernel"))
	known := profile(pcrs(4, value(kernel, 4)))
	insert := func(at int, e ...event) *sources.Boot { return booted(slices.Insert(usual("kernel"), at, e...)) }
	for _, tt := range []struct {
		name, file string
		boot       *sources.Boot
		want       []string
		not        string
	}{
		{
			"one more in the middle", known, insert(5, event{4, "implant"}),
			[]string{
				"web: PCR 4 has the value " + value(insert(5, event{4, "implant"}), 4),
				"without this event PCR 4 would have a known value, so it is new; event 6 (EV_OF_PCR_4) " + hexOf("implant"),
			},
			hexOf("grub"),
		},
		{
			"several at the end", known, insert(8, event{4, "one"}, event{7, "between"}, event{4, "two"}),
			[]string{
				"without these 2 events PCR 4 would have a known value, so they are new; " +
					"event 9 (EV_OF_PCR_4) " + hexOf("one") + "; event 11 (EV_OF_PCR_4) " + hexOf("two"),
			},
			hexOf("between"),
		},
		{
			"one replaced", known, booted(usual("other")),
			[]string{"PCR 4 has 4 events, the last first; event 8 (EV_OF_PCR_4) " + hexOf("other") + "; event 7"},
			"so it is new",
		},
		{
			"no replay", known, func() *sources.Boot {
				b := booted(usual("other"))
				b.Log.Replays[4] = false
				return b
			}(),
			[]string{"the event log does not explain PCR 4"},
			"event 8",
		},
		{
			"the nearest first", `{"profiles": [
				{"name": "far", "secureboot": {"enabled": false}, "pcrs": {"sha256": {"0": ["` + hexOf("x") + `"], "4": ["` + hexOf("y") + `"]}}},
				{"name": "near", "pcrs": {"sha256": {"0": ["` + value(kernel, 0) + `"], "4": ["` + hexOf("z") + `"]}}}]}`,
			kernel,
			[]string{"meets no profile; near: PCR 4 has the value", "far: PCR 0 has the value " + value(kernel, 0) + "; PCR 4 likewise; Secure Boot is enabled; that value of PCR 0 is known to near"},
			"far: PCR 4",
		},
		{
			"several PCRs", profile(`"pcrs": {"sha256": {"0": ["` + hexOf("x") + `"], "4": ["` + value(kernel, 4) + `"], "7": ["` + hexOf("y") + `"]}}`),
			booted(append(append([]event(nil), usual("kernel")...), slices.Repeat([]event{{0, "more firmware"}}, 30)...)),
			[]string{
				"web: PCR 0 has the value ", "; PCR 7 has the value " + value(kernel, 7) + "; PCR 0 has 31 events, the last first; event 38 ",
				"event 35 (EV_OF_PCR_0) " + hexOf("more firmware") + "; PCR 7 has 3 events, the last first; event 6 ",
			},
			"event 34",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, tt.file)
			wantNot(t, s, tt.boot, tt.want...)
			if v, _ := s.Check(t.Context(), machine(tt.boot)); strings.Contains(v.Reason, tt.not) {
				t.Errorf("the reason says %q: %s", tt.not, v.Reason)
			}
		})
	}
}

// PCR 0 begins with the startup locality, and the other bank has another hash: the reason names the
// event in these cases, too.
func TestReasonOfLocalityAndBank(t *testing.T) {
	for _, bank := range []struct {
		name   string
		size   int
		extend func(value, digest []byte) []byte
	}{{"sha256", 32, extended}, {"sha384", 48, extended384}} {
		for _, locality := range []byte{0, 3, 4} {
			start := make([]byte, bank.size)
			start[bank.size-1] = locality
			one, two := slices.Repeat([]byte{1}, bank.size), slices.Repeat([]byte{2}, bank.size)
			b := &sources.Boot{
				Bank: bank.name, PCRs: map[int][]byte{0: bank.extend(bank.extend(start, one), two)},
				Log: &sources.BootLog{Replays: map[int]bool{0: true}, Events: []sources.BootEvent{
					{PCR: 0, Number: 1, Digest: one, What: "one"}, {PCR: 0, Number: 2, Digest: two, What: "two"},
				}},
			}
			path := t.TempDir() + "/boot.json"
			write(t, path, `{"profiles": [{"name": "web", "pcrs": {"`+bank.name+`": {"0": ["`+hex.EncodeToString(bank.extend(start, one))+`"]}}}]}`)
			s := newSource(t, bootpolicy.Config{Path: path, Quote: &bootprofiles.Quote{Bank: bank.name, PCRs: []int{0}}})
			must(t, s.Load(t.Context()))
			wantNot(t, s, b, fmt.Sprintf("so it is new; event 2 (two) %x", two))
		}
	}
}

// A machine chooses what it measures, and a server's log has limited room.
func TestReasonIsBounded(t *testing.T) {
	var many []event
	for i := range 4000 {
		many = append(many, event{4, fmt.Sprint("image ", i)})
	}
	b := booted(many)
	var profiles []string
	for i := range 200 {
		profiles = append(profiles, fmt.Sprintf(`{"name": %q, "images": {"only": [%q]}, %s}`,
			strings.Repeat("é", 100)+strconv.Itoa(i), hexOf("x"), pcrs(4, hexOf(strconv.Itoa(i)))))
	}
	s := open(t, `{"profiles": [`+strings.Join(profiles, ",")+`]}`)
	wantNot(t, s, b, "; …")
	// However long the name of the first profile is.
	if v, _ := s.Check(t.Context(), machine(b)); !strings.Contains(v.Reason, "PCR 4 has the value") || !strings.HasSuffix(v.Reason, "…") {
		t.Errorf("%s", v.Reason)
	}
	// What of a machine is listed is bounded as well.
	for i := range profiles {
		profiles[i] = fmt.Sprintf(`{"name": %q, %s}`, strings.Repeat("é", 100)+strconv.Itoa(i), pcrs(4, value(b, 4)))
	}
	if v := wantListed(t, open(t, `{"profiles": [`+strings.Join(profiles, ",")+`]}`), b); len(v.Reason) > sources.MaxReason || v.Attributes.Validate() != nil {
		t.Errorf("%d bytes: %s", len(v.Reason), v.Reason)
	}
}

// A machine chooses what is in its dbx, and a profile may have thousands of digests for dbx.
// Comparing the two takes less than a second, even if there are many profiles.
func TestManyDigestsInDBX(t *testing.T) {
	const conditions, there = 4096, 5461 // as many as a list and a log may have
	b := booted(usual("kernel"))
	b.Log.DBX.Digests = nil
	var dbx []string
	for i := range there {
		name := "forbidden " + strconv.Itoa(i)
		b.Log.DBX.Digests = append(b.Log.DBX.Digests, digest(name))
		if i >= there-conditions {
			dbx = append(dbx, hexOf(name))
		}
	}
	var profiles []string
	for i := range 12 {
		profiles = append(profiles, `{"name": "`+strconv.Itoa(i)+`", "secureboot": {"dbx": {"contains": ["`+strings.Join(dbx, `", "`)+`"]}}}`)
	}
	s := open(t, `{"profiles": [`+strings.Join(profiles, ",")+`]}`)
	var took time.Duration
	for range 10 { // a machine that is busy is slow at times, and not each time
		begun := time.Now()
		wantListed(t, s, b)
		if took = time.Since(begun); took < time.Second {
			return
		}
	}
	t.Errorf("it took %v", took)
}
