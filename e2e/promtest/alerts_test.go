package promtest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/rulefmt"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/promtest"
)

const alertsFile = "../../examples/monitoring/alerts.yml"

// healthy is what Prometheus has of two servers with which all is well: a list that is published
// every hour for a day, CAs, a directory under a deny rule, and agents that attest.
var healthy = func() string {
	const all = 1600 // minutes
	var b strings.Builder
	for _, instance := range []string{"one", "two"} {
		for series, values := range map[string]string{
			`up{job="spire-server"}`:                           "1x%d",
			`spire_server_tpm_heartbeat`:                       "0+3x%d",
			`spire_server_tpm_version{version="v1"}`:           "1x%d",
			`spire_server_tpm_configuration{result="ok"}`:      "1x%d",
			`spire_server_tpm_configuration{result="refused"}`: "0x%d",
			`spire_server_tpm_ek_alternating`:                  "0x%d",

			`spire_server_tpm_attestation{outcome="admitted"}`:         "0+4x%d",
			`spire_server_tpm_attestation{outcome="refused"}`:          "0+1x%d", // a machine that nobody has listed
			`spire_server_tpm_attestation{outcome="unavailable"}`:      "0x%d",
			`spire_server_tpm_attestation{outcome="challenge_failed"}`: "0x%d",
			`spire_server_tpm_attestation{outcome="internal"}`:         "0x%d",

			`spire_server_tpm_attestation_reason{outcome="refused",reason="no_allow_rule"}`:          "0+1x%d",
			`spire_server_tpm_attestation_reason{outcome="unavailable",reason="no_allow_rule"}`:      "0x%d",
			`spire_server_tpm_attestation_reason{outcome="unavailable",reason="too_many_strangers"}`: "0x%d",
			`spire_server_tpm_attestation_rule{effect="deny",outcome="refused",rule="stolen"}`:       "0x%d",

			`spire_server_tpm_source_up{source="inventory"}`:                  "1x%d",
			`spire_server_tpm_source_up{source="vendors"}`:                    "1x%d",
			`spire_server_tpm_source_up{source="stolen"}`:                     "1x%d",
			`spire_server_tpm_source_stuck{source="stolen"}`:                  "0x%d",
			`spire_server_tpm_source_entries{source="inventory"}`:             "1000x%d",
			`spire_server_tpm_source_entries{source="vendors"}`:               "12x%d",
			`spire_server_tpm_source_serial_low{source="inventory"}`:          "41x300 42x%d", // both at once
			`spire_server_tpm_source_age{source="inventory"}`:                 "20x%d",
			`spire_server_tpm_source_stale{source="inventory"}`:               "86380x%d",
			`spire_server_tpm_source_expires{source="inventory"}`:             "82800x%d",
			`spire_server_tpm_source_fetch{source="vendors",result="failed"}`: "0x20 1x%d", // a stranger's certificate
			`spire_server_tpm_source_unchecked{source="vendors"}`:             "0x%d",
		} {
			fmt.Fprintf(&b, "%s %s\n", on(instance, series), fmt.Sprintf(values, all))
		}
	}
	return b.String()
}()

// on returns a series with the label instance.
func on(instance, series string) string {
	series = strings.TrimSpace(series)
	name := series[:strings.IndexAny(series+"{", "{ ")]
	rest, found := strings.CutPrefix(series[len(name):], "{")
	if !found {
		rest = "}" + rest
	}
	return fmt.Sprintf("%s{instance=%q,%s", name, instance, rest)
}

// A situation is what happens on the server "one", beside healthy.
type situation struct {
	what   string
	series string
	hours  int // how long it is watched; 0 means 4
	// fires has the alerts that fire, each with the minute in which it begins. No others fire.
	fires map[string]int
}

var situations = []situation{
	{what: "all is well", hours: 26},
	{
		what: "spire-server does not answer, from minute 30 to 60",
		series: `up{job="spire-server"} 1x29 0x30 1x300
			spire_server_tpm_heartbeat 0+3x29 _x30 90+3x300`,
		fires: map[string]int{"TPMServerGone": 35},
	},
	{
		what:   "spire-server restarts in minute 30, and its counters begin anew",
		series: `spire_server_tpm_heartbeat 0+3x29 1+3x300`,
	},
	{
		what:   "the plugin dies in minute 30, and SPIRE shows its last metrics for ever",
		series: `spire_server_tpm_heartbeat 0+3x30 90x300`,
		fires:  map[string]int{"TPMPluginGone": 39},
	},
	{
		what: "a server without the plugin: nothing but up",
		series: `spire_server_tpm_heartbeat _x400
			spire_server_tpm_attestation{outcome="admitted"} _x400`,
		fires: map[string]int{"TPMPluginGone": 5},
	},
	{
		what: "a list that never loaded decides about the fleet",
		series: `spire_server_tpm_source_up{source="inventory"} 1x30 0x300
			spire_server_tpm_source_entries{source="inventory"} 1000x30 NaN+0x300
			spire_server_tpm_source_age{source="inventory"} 20x30 NaN+0x300
			spire_server_tpm_source_stale{source="inventory"} 86380x30 NaN+0x300
			spire_server_tpm_source_expires{source="inventory"} 82800x30 NaN+0x300
			spire_server_tpm_attestation{outcome="admitted"} 0+4x30 120x300
			spire_server_tpm_attestation{outcome="unavailable"} 0x30 0+8x300
			spire_server_tpm_attestation_reason{outcome="unavailable",reason="no_allow_rule"} 0x30 0+8x300`,
		fires: map[string]int{"TPMSourceDown": 36, "TPMUnavailable": 42, "TPMMostUnavailable": 45},
	},
	{
		what:   "a directory is not mounted",
		series: `spire_server_tpm_source_up{source="stolen"} 1x30 0x300`,
		fires:  map[string]int{"TPMSourceDown": 36},
	},
	{
		what:   "the CA files cannot be used any more, and the last good ones are",
		series: `spire_server_tpm_source_up{source="vendors"} 1x30 0x300`,
		fires:  map[string]int{"TPMSourceNotLoading": 46},
	},
	{
		what: "a web server is down for half of max_staleness and longer",
		series: `spire_server_tpm_source_up{source="inventory"} 1x30 0x2000
			spire_server_tpm_source_age{source="inventory"} 20x30 20+60x2000
			spire_server_tpm_source_stale{source="inventory"} 86380x30 86380-60x2000`,
		hours: 26,
		// Half of a day is 720 minutes, a day 1440.
		fires: map[string]int{"TPMSourceNotLoading": 46, "TPMSourceStale": 761, "TPMSourceDown": 1476},
	},
	{
		what: "a web server is down for a quarter of an hour, and nobody need know",
		series: `spire_server_tpm_source_up{source="inventory"} 1x30 0x14 1x300
			spire_server_tpm_source_age{source="inventory"} 20x30 20+60x14 20x300`,
	},
	{
		what: "polls at half of max_staleness, so that half of it is over before each",
		series: `spire_server_tpm_source_age{source="inventory"} 0 60 120 180 240 300 0 60 120 180 240 300
			spire_server_tpm_source_stale{source="inventory"} 480 420 360 300 240 180 480 420 360 300 240 180`,
	},
	{
		what: "a source is removed from the configuration",
		series: `spire_server_tpm_source_up{source="inventory"} 1x30 NaN+0x300
			spire_server_tpm_source_entries{source="inventory"} 1000x30 NaN+0x300
			spire_server_tpm_source_age{source="inventory"} 20x30 NaN+0x300
			spire_server_tpm_source_stale{source="inventory"} 86380x30 NaN+0x300
			spire_server_tpm_source_expires{source="inventory"} 82800x30 NaN+0x300
			spire_server_tpm_source_serial_low{source="inventory"} 41x30 NaN+0x300`,
	},
	{
		what:   "a list is not published anew",
		series: `spire_server_tpm_source_expires{source="inventory"} 82800-60x1379 0-60x300`,
		hours:  26,
		// A quarter of 23 hours is left after 1035 minutes.
		fires: map[string]int{"TPMListExpires": 1041},
	},
	{
		what:   "a list of ten thousand loses a quarter",
		series: `spire_server_tpm_source_entries{source="inventory"} 10000x30 7500x300`,
		fires:  map[string]int{"TPMListShrank": 31},
	},
	{
		what:   "a list of twelve is empty",
		series: `spire_server_tpm_source_entries{source="vendors"} 12x30 0x300`,
		fires:  map[string]int{"TPMListShrank": 31},
	},
	{
		what:   "a list of twelve loses four",
		series: `spire_server_tpm_source_entries{source="vendors"} 12x30 8x300`,
	},
	{
		what:   "a deny list is empty from the start",
		series: `spire_server_tpm_source_entries{source="vendors"} 0x300`,
	},
	{
		what:   "a server follows eleven minutes late",
		series: `spire_server_tpm_source_serial_low{source="inventory"} 41x311 42x300`,
		hours:  6,
		fires:  map[string]int{"TPMServersDiffer": 311},
	},
	{
		what:   "a file system hangs",
		series: `spire_server_tpm_source_stuck{source="stolen"} 0x30 3x300`,
		fires:  map[string]int{"TPMSourceStuck": 36},
	},
	{
		what:   "a vendor's host is down for hours",
		series: `spire_server_tpm_source_fetch{source="vendors",result="failed"} 0x30 1+1x300`,
		fires:  map[string]int{"TPMFetchFails": 61},
	},
	{
		what:   "one machine counts unchecked",
		series: `spire_server_tpm_source_unchecked{source="vendors"} 0x30 1x300`,
		fires:  map[string]int{"TPMUnchecked": 31},
	},
	{
		what:   "a stolen machine tries once",
		series: `spire_server_tpm_attestation_rule{effect="deny",outcome="refused",rule="stolen"} 0x30 1x300`,
		fires:  map[string]int{"TPMDenied": 31},
	},
	{
		what:   "somebody presents the EK of another machine",
		series: `spire_server_tpm_attestation{outcome="challenge_failed"} 0x30 1x300`,
		fires:  map[string]int{"TPMChallengeFailed": 31},
	},
	{
		what:   "a virtual machine was copied with its TPM",
		series: `spire_server_tpm_ek_alternating 0x30 1x300`,
		fires:  map[string]int{"TPMCopied": 31},
	},
	{
		what:   "a defect",
		series: `spire_server_tpm_attestation{outcome="internal"} 0x30 1x300`,
		fires:  map[string]int{"TPMInternal": 31},
	},
	{
		what: "a rule that nobody meets goes into service",
		series: `spire_server_tpm_attestation{outcome="admitted"} 0+4x30 120x300
			spire_server_tpm_attestation{outcome="refused"} 0+1x30 31+9x300`,
		fires: map[string]int{"TPMMostRefused": 36},
	},
	{
		what: "strangers try as often as a large fleet attests",
		series: `spire_server_tpm_attestation{outcome="admitted"} 0+40x300
			spire_server_tpm_attestation{outcome="refused"} 0+39x300`,
	},
	{
		what: "one machine, whose certificate names a host that is down, comes back every minute",
		series: `spire_server_tpm_attestation{outcome="unavailable"} 0x30 1+1x300
			spire_server_tpm_attestation_reason{outcome="unavailable",reason="no_allow_rule"} 0x30 1+1x300`,
		fires: map[string]int{"TPMUnavailable": 41},
	},
	{
		what: "the credential composer dies",
		series: `spire_server_tpm_attestation{outcome="unavailable"} 0x30 1+1x300
			spire_server_tpm_attestation_reason{outcome="unavailable",reason="composer"} 0x30 1+1x300`,
		fires: map[string]int{"TPMComposerGone": 33, "TPMUnavailable": 41},
	},
	{
		what: "SPIRE is about to sign another key than the certified one",
		series: `spire_server_tpm_composer{outcome="allowed"} 0+10x300
			spire_server_tpm_composer{outcome="other_key"} 0x30 1x300
			spire_server_tpm_composer{outcome="no_key"} 0x300`,
		fires: map[string]int{"TPMSVIDRefused": 31},
	},
	{
		what: "evict has an alarm, and then ends",
		series: `tpm_attestor_evict_alarm{alarm="brake"} 0x30 1x300
			tpm_attestor_evict_alarm{alarm="spire"} 0x300
			tpm_attestor_evict_last_pass_timestamp_seconds 0+60x60 3600x300`,
		fires: map[string]int{"TPMEvictAlarm": 36, "TPMEvictGone": 66},
	},
	{
		what: "strangers fill their places",
		series: `spire_server_tpm_attestation{outcome="unavailable"} 0x30 100x300
			spire_server_tpm_attestation_reason{outcome="unavailable",reason="too_many_strangers"} 0x30 100x300`,
		fires: map[string]int{"TPMLimitReached": 31},
	},
	{
		what:   "a reload is refused",
		series: `spire_server_tpm_configuration{result="refused"} 0x30 1x300`,
		fires:  map[string]int{"TPMConfigurationRefused": 31},
	},
	{
		what: "an upgrade stops at the first server",
		series: `spire_server_tpm_version{version="v1"} 1x29 _x2000
			spire_server_tpm_version{version="v2"} _x29 1x2000`,
		hours: 26,
		fires: map[string]int{"TPMVersionsDiffer": 1469},
	},
}

// Each alert fires in the situation that it is for, in the minute in which it should, and in no
// other: an alert that never fires is one that nobody misses, and one that fires for nothing is
// soon ignored.
func TestAlerts(t *testing.T) {
	rules, err := promtest.ReadRules(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	untested := map[string]bool{}
	for _, r := range rules {
		untested[r.Alert] = true
	}
	for _, s := range situations {
		for name := range s.fires {
			delete(untested, name)
		}
		t.Run(s.what, func(t *testing.T) {
			t.Parallel()
			wantAlerts(t, rules, s)
		})
	}
	if len(untested) > 0 {
		t.Errorf("no situation is one for %v", untested)
	}
}

func wantAlerts(t *testing.T, rules []rulefmt.Rule, s situation) {
	t.Helper()
	store := promtest.NewStore()
	lines := []string{healthy}
	for line := range strings.Lines(s.series) {
		lines = append(lines, on("one", line))
	}
	if err := store.Load(strings.Join(lines, "\n"), time.Minute); err != nil {
		t.Fatal(err)
	}
	hours := s.hours
	if hours == 0 {
		hours = 4
	}
	begun := time.Unix(0, 0)
	all, err := store.Alerts(t.Context(), rules, begun, begun.Add(time.Duration(hours)*time.Hour), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	slices.SortFunc(all, func(a, b promtest.Alert) int { return a.Since.Compare(b.Since) })
	for _, a := range all {
		minute := int(a.Since.Sub(begun).Minutes())
		want, ok := s.fires[a.Name]
		if !ok || !seen[a.Name] && minute != want {
			t.Errorf("%s fires from minute %d: %s", a.Name, minute, a.Labels)
		}
		seen[a.Name] = true
	}
	for name, minute := range s.fires {
		if !seen[name] {
			t.Errorf("%s does not fire from minute %d", name, minute)
		}
	}
}
