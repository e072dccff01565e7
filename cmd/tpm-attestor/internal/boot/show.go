package boot

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/pcrs"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

func newShow(output *cli.Format) *cobra.Command {
	var f flags
	var events, data bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show an event log and the PCRs that it comes to",
		Long: `show says what an event log comes to: the PCRs, the Secure Boot state, the certificates and digests
that were used, and each event in words. It compares the PCRs with those of this machine's TPM.

What is in the events is left out, since logs hold serial numbers, disk UUIDs and command lines: --data
prints it.`,
		Example: cli.Examples(
			"sudo tpm-attestor boot show",
			"sudo tpm-attestor boot show --events",
			"tpm-attestor boot show --log binary_bios_measurements --output json",
		),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.read(cmd, pcrs.All())
			if err != nil {
				return err
			}
			if s.noTPM != nil {
				cli.Note(cmd, "the PCRs below are what the log comes to; the TPM was not asked: %v", s.noTPM)
			}
			shown := s.show(events || data, data)
			if *output == cli.JSON {
				return cli.PrintJSON(cmd, shown)
			}
			return cli.PrintText(cmd, shown.text(s))
		},
	}
	cmd.ValidArgsFunction = cli.Nothing
	f.add(cmd)
	cmd.Flags().BoolVar(&events, "events", false, "show each event")
	cmd.Flags().BoolVar(&data, "data", false, "show what is in each event, too: it may identify the machine")
	return cmd
}

// A shownBoot is the JSON output of boot show.
type shownBoot struct {
	Version int `json:"version"`
	// NoLog says why there is no log. Without a log, most of the rest is missing.
	NoLog           string                       `json:"no_log,omitempty"`
	Banks           []string                     `json:"banks,omitempty"`
	EventCount      int                          `json:"event_count"`
	StartupLocality *uint8                       `json:"startup_locality,omitempty"`
	Bank            string                       `json:"bank"`
	PCRs            map[string]string            `json:"tpm,omitempty"` // of the TPM, in Bank
	Replayed        map[string]map[string]string `json:"replayed"`      // by bank
	// Differ are the PCRs that a log is checked against and whose replayed values differ from the TPM's.
	Differ []int `json:"differ,omitempty"`

	SecureBoot       string `json:"secureboot"`
	SecureBootReason string `json:"secureboot_reason,omitempty"`

	DB          *shownSet `json:"db,omitempty"`
	DBX         *shownSet `json:"dbx,omitempty"`
	Authorities *shownSet `json:"authorities,omitempty"`
	Images      *shownSet `json:"images,omitempty"`

	Events []shownEvent `json:"events,omitempty"`
}

// A shownSet is the JSON form of a sources.Measured.
type shownSet struct {
	Digests []string `json:"digests"`
	Partial string   `json:"partial,omitempty"`
}

type shownEvent struct {
	Number int    `json:"number"`
	PCR    uint32 `json:"pcr"`
	Type   string `json:"type"`
	Digest string `json:"digest,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// unknown is the Secure Boot state if neither state is proved.
const unknown = "unknown"

// show returns what is known about a boot.
func (s *state) show(events, data bool) *shownBoot {
	b := &shownBoot{Version: 1, Bank: s.Bank, SecureBoot: unknown, Replayed: map[string]map[string]string{}}
	if s.tpm {
		b.PCRs = hexPCRs(s.PCRs)
	}
	if s.log == nil {
		b.NoLog = s.noLog.Error()
		b.SecureBootReason = "there is no event log"
		return b
	}
	b.Banks, b.EventCount = s.log.Banks, len(s.log.Events)
	if locality, err := s.log.StartupLocality(); err == nil {
		b.StartupLocality = &locality
	}
	for _, bank := range s.log.Banks {
		if pcrs := s.log.Replay(bank); pcrs != nil {
			b.Replayed[bank] = hexPCRs(pcrs)
		}
	}
	b.judged(s.Boot)
	if events {
		for i := range s.log.Events {
			b.Events = append(b.Events, showEvent(&s.log.Events[i], s.Bank, data))
		}
	}
	return b
}

// judged fills in what the log proves about the PCRs.
func (b *shownBoot) judged(of *sources.Boot) {
	l := of.Log
	if l == nil {
		b.SecureBootReason = of.NoLog
		return
	}
	for _, pcr := range slices.Sorted(maps.Keys(l.Replays)) {
		if !l.Replays[pcr] {
			b.Differ = append(b.Differ, pcr)
		}
	}
	if b.SecureBootReason = l.NoSecureBoot; l.SecureBoot != "" {
		b.SecureBoot = l.SecureBoot
	}
	b.DB, b.DBX, b.Authorities, b.Images = showSet(l.DB), showSet(l.DBX), showSet(l.Authorities), showSet(l.Images)
}

func showSet(m sources.Measured) *shownSet {
	set := &shownSet{Digests: []string{}, Partial: m.Partial}
	for _, d := range m.Digests {
		set.Digests = append(set.Digests, hex.EncodeToString(d))
	}
	return set
}

func hexPCRs(pcrs map[int][]byte) map[string]string {
	m := make(map[string]string, len(pcrs))
	for pcr, value := range pcrs {
		m[strconv.Itoa(pcr)] = hex.EncodeToString(value)
	}
	return m
}

func showEvent(e *eventlog.Event, bank string, data bool) shownEvent {
	shown := shownEvent{
		Number: e.Number, PCR: e.PCR, Type: e.What(), Digest: hex.EncodeToString(e.Digest(bank)),
		Detail: detail(e, data),
	}
	if data {
		shown.Detail = strings.TrimPrefix(shown.Detail+": ", ": ") + asText(e.Data)
	}
	return shown
}

// detail returns more about an event, as far as that does not identify the machine: the name of a known variable,
// or a fixed text of the firmware. With data, it returns the name of any variable.
func detail(e *eventlog.Event, data bool) string {
	switch what := e.What(); {
	case strings.HasPrefix(what, "EV_EFI_VARIABLE_"):
		v, err := eventlog.ParseVariable(e.Data)
		if err == nil && (data || knownVariable.MatchString(v.Name)) {
			return printable(v.Name)
		}
	case what == "EV_EFI_ACTION" && !data && slices.Contains(knownTexts, string(e.Data)):
		return string(e.Data)
	}
	return ""
}

// knownVariable matches the names of variables in UEFI 2.10, 3.3, and in shim. The names of others may be chosen by
// a manufacturer or a machine, and may identify the machine.
var knownVariable = regexp.MustCompile(`^(SecureBoot|SetupMode|AuditMode|DeployedMode|PK|KEK|db|dbx|dbt|dbr|` +
	`(Boot|Driver|SysPrep)(Order|[0-9A-Fa-f]{4})|BootNext|BootCurrent|Timeout|` +
	`Shim|SbatLevel|Mok(List|ListX|ListTrusted|SBState|DBState|IgnoreDB|Policy))$`)

// knownTexts are what firmware measures as EV_EFI_ACTION (TCG PC Client Platform Firmware Profile 1.06, 10.4.4).
var knownTexts = []string{
	"Calling EFI Application from Boot Option",
	"Returning from EFI Application from Boot Option",
	"Exit Boot Services Invocation",
	"Exit Boot Services Returned with Failure",
	"Exit Boot Services Returned with Success",
	"UEFI Debug Mode",
	"DMA Protection Disabled",
}

// asText shows data for people: their printable characters, in UTF-16 too.
func asText(data []byte) string {
	const most = 512
	cut := ""
	if len(data) > most {
		data, cut = data[:most], "…"
	}
	var b strings.Builder
	for i, c := range data {
		switch {
		case c >= ' ' && c < 0x7f:
			b.WriteByte(c)
		case c == 0 && i > 0 && data[i-1] >= ' ' && data[i-1] < 0x7f: // the other half of a UTF-16 unit
		default:
			b.WriteByte('.')
		}
	}
	return b.String() + cut
}

// text describes a boot for people.
func (b *shownBoot) text(s *state) string {
	var t strings.Builder
	if b.NoLog != "" {
		fmt.Fprintf(&t, "Event log: none: %s\n", b.NoLog)
	} else {
		fmt.Fprintf(&t, "Event log: %d events, banks %s\n", b.EventCount, strings.Join(b.Banks, ", "))
	}
	fmt.Fprintf(&t, "Secure Boot: %s", b.SecureBoot)
	if b.SecureBootReason != "" {
		fmt.Fprintf(&t, " (%s)", b.SecureBootReason)
	}
	fmt.Fprintf(&t, "\n\nPCRs, %s:\n", b.Bank)
	if len(s.PCRs) == 0 {
		t.WriteString("  none\n")
	}
	for _, pcr := range slices.Sorted(maps.Keys(s.PCRs)) {
		line := fmt.Sprintf("  %2d  %x  %s", pcr, s.PCRs[pcr], s.replays(pcr))
		fmt.Fprintf(&t, "%s\n      %s\n", strings.TrimRight(line, " "), pcrs.Meaning(pcr))
	}
	for _, set := range []struct {
		name string
		*shownSet
	}{
		{"Certificates in db", b.DB},
		{"Digests in dbx", b.DBX},
		{"Certificates that have vouched", b.Authorities},
		{"Images in PCR 4", b.Images},
	} {
		if set.shownSet != nil {
			set.text(&t, set.name)
		}
	}
	for i, e := range b.Events {
		if i == 0 {
			t.WriteString("\nEvents (number, PCR, type, digest):\n")
		}
		fmt.Fprintf(&t, "  %4d  %2d  %s  %.16s…", e.Number, e.PCR, e.Type, e.Digest)
		if e.Detail != "" {
			fmt.Fprintf(&t, "  %s", e.Detail)
		}
		t.WriteString("\n")
	}
	return t.String()
}

// replays says in a word or two how the log relates to a PCR.
func (s *state) replays(pcr int) string {
	if !s.tpm || s.Log == nil {
		return ""
	}
	switch same, judged := s.Log.Replays[pcr]; {
	case same:
		return "as the log says"
	case judged:
		return "DIFFERS from the log"
	case len(bytes.Trim(s.PCRs[pcr], "\x00")) == 0, len(bytes.Trim(s.PCRs[pcr], "\xff")) == 0:
		return "nothing was measured"
	}
	return "not in the log, or extended since"
}

func (set *shownSet) text(t *strings.Builder, name string) {
	const most = 8
	fmt.Fprintf(t, "\n%s: %d", name, len(set.Digests))
	if set.Partial != "" {
		fmt.Fprintf(t, " (%s)", set.Partial)
	}
	t.WriteString("\n")
	for i, d := range set.Digests {
		if i == most {
			fmt.Fprintf(t, "  … and %d more, see --output json\n", len(set.Digests)-most)
			break
		}
		fmt.Fprintf(t, "  %s\n", d)
	}
}
