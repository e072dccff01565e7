package evict

import (
	"fmt"
	"io"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
)

// A metric describes a gauge or a counter in the status file.
type metric struct{ name, kind, help string }

// The metrics. alarm and source_up have a label: the alarm's or the source's name.
var (
	metricAlarm    = metric{"alarm", "gauge", "1 while the alarm is on, by its name."}
	metricAgents   = metric{"agents", "gauge", "Agents attested by their TPM that have a valid SVID."}
	metricUnknown  = metric{"agents_unknown", "gauge", "Agents whose EK hash SPIRE does not say: never evicted."}
	metricUnsure   = metric{"agents_cannot_tell", "gauge", "Agents about which a source that matters cannot tell."}
	metricRefused  = metric{"agents_refused", "gauge", "Agents that the configuration refuses and that are still in."}
	metricEvicted  = metric{"evicted_total", "counter", "Agents evicted since the process was started."}
	metricLast     = metric{"last_pass_timestamp_seconds", "gauge", "When all agents were last looked at: Unix time."}
	metricDuration = metric{"pass_seconds", "gauge", "How long it took to look at all agents."}
	metricSource   = metric{"source_up", "gauge", "1 if the source can tell, by its name."}
)

const metricPrefix = "tpm_attestor_evict_"

func (m metric) write(b *strings.Builder, values ...string) {
	fmt.Fprintf(b, "# HELP %s%s %s\n# TYPE %[1]s%[2]s %[4]s\n", metricPrefix, m.name, m.help, m.kind)
	for _, v := range values {
		fmt.Fprintf(b, "%s%s%s\n", metricPrefix, m.name, v)
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
	metricAlarm.write(&b, alarms...)
	looked := !e.looked.IsZero() // before the first look, nobody knows how many agents there are
	if looked {
		metricAgents.write(&b, number(e.counts.Agents))
		metricUnknown.write(&b, number(e.counts.Unknown))
		metricUnsure.write(&b, number(e.counts.CannotTell))
		metricRefused.write(&b, number(e.counts.Refused))
	}
	metricEvicted.write(&b, number(e.counts.Evicted))
	if looked {
		metricLast.write(&b, seconds(float64(e.looked.UnixMilli())/1e3))
		metricDuration.write(&b, seconds(e.took.Seconds()))
	}
	metricSource.write(&b, sources...)
	return b.String()
}
