package evict

import (
	"fmt"
	"io"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/atomicfile"
)

// A gauge is one metric in the status file.
type gauge struct{ name, kind, help string }

// The metrics. Those of whether an alarm is on and of whether a source can tell have a label.
var (
	gaugeAlarm    = gauge{"alarm", "gauge", "1 while the alarm is on, by its name."}
	gaugeAgents   = gauge{"agents", "gauge", "Agents attested by their TPM that have a valid SVID."}
	gaugeUnknown  = gauge{"agents_unknown", "gauge", "Agents whose EK hash SPIRE does not say; they are never evicted."}
	gaugeUnsure   = gauge{"agents_cannot_tell", "gauge", "Agents about which a source that matters cannot tell."}
	gaugeRefused  = gauge{"agents_refused", "gauge", "Agents that the configuration refuses and that are still in."}
	gaugeEvicted  = gauge{"evicted_total", "counter", "Agents evicted since the process was started."}
	gaugeLast     = gauge{"last_pass_timestamp_seconds", "gauge", "When all agents were last looked at, in Unix time."}
	gaugeDuration = gauge{"pass_seconds", "gauge", "How long it took to look at all agents."}
	gaugeSource   = gauge{"source_up", "gauge", "1 if the source can tell, by its name."}
)

const metricPrefix = "tpm_attestor_evict_"

func (g gauge) write(b *strings.Builder, values ...string) {
	fmt.Fprintf(b, "# HELP %s%s %s\n# TYPE %[1]s%[2]s %[4]s\n", metricPrefix, g.name, g.help, g.kind)
	for _, v := range values {
		fmt.Fprintf(b, "%s%s%s\n", metricPrefix, g.name, v)
	}
}

func number(n int) string { return fmt.Sprintf(" %d", n) }

func seconds(n float64) string { return fmt.Sprintf(" %.3f", n) }

func labelled(label, value string, on bool) string {
	n := 0
	if on {
		n = 1
	}
	return fmt.Sprintf("{%s=%q} %d", label, value, n)
}

// writeStatus replaces the status file. Its text is Prometheus' format, as the textfile collector
// of node_exporter reads it.
func (e *evicter) writeStatus() error {
	return atomicfile.Write(e.status, func(w io.Writer) error {
		_, err := io.WriteString(w, e.metrics())
		return err
	})
}

func (e *evicter) metrics() string {
	var b strings.Builder
	var alarms, sources []string
	for _, name := range alarmNames() {
		_, on := e.report.alarms[name]
		alarms = append(alarms, labelled("alarm", name, on))
	}
	for _, s := range e.site.previewer.Status() {
		sources = append(sources, labelled("source", s.Name, s.Up()))
	}
	gaugeAlarm.write(&b, alarms...)
	gaugeAgents.write(&b, number(e.counts.Agents))
	gaugeUnknown.write(&b, number(e.counts.Unknown))
	gaugeUnsure.write(&b, number(e.counts.CannotTell))
	gaugeRefused.write(&b, number(e.counts.Refused))
	gaugeEvicted.write(&b, number(e.counts.Evicted))
	if !e.looked.IsZero() {
		gaugeLast.write(&b, seconds(float64(e.looked.UnixMilli())/1e3))
		gaugeDuration.write(&b, seconds(e.took.Seconds()))
	}
	gaugeSource.write(&b, sources...)
	return b.String()
}
