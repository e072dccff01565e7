package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/pcrs"
	"github.com/spire-tpm/spire-tpm-attestor/server/boot"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// machine checks this machine. It returns an error only if the command line or a configuration is wrong.
func (d *doctor) machine(f flags, args []string) error {
	cfg, err := d.agentConfig(f, args)
	if err != nil {
		return err
	}
	d.configured = len(args) > 0
	server, err := d.serverConfig(f.serverConfig)
	if err != nil {
		return err
	}
	t, err := tpm.New(cfg)
	if err != nil {
		return cli.Exit(cli.ExitUsage, err)
	}
	if f.user != "" {
		u, err := access.Lookup(f.user)
		if err != nil {
			return cli.UsageError("--user: %w", err)
		}
		d.mayUseTPM(u, t.Device())
	}
	d.progress.Now("asking the TPM")
	found := d.health(t)
	var valid []time.Time
	if found {
		valid = d.certificates(t)
	}
	d.eventLog(t, server, found)
	d.lookAtClock(valid)
	if found {
		d.attest(t, server)
	}
	return nil
}

// agentConfig returns the agent's configuration, if it was named, completed by the flags and the environment.
func (d *doctor) agentConfig(f flags, args []string) (cfg tpm.Config, err error) {
	if len(args) > 0 {
		if cfg, err = d.readAgentConfig(args[0]); err != nil {
			return tpm.Config{}, err
		}
	}
	if f.device != "" {
		cfg.Device = ekreport.Device(f.device)
	}
	if cfg.EndorsementPassword == "" {
		cfg.EndorsementPassword = os.Getenv("TPM_ENDORSEMENT_PASSWORD")
	}
	if cfg.OwnerPassword == "" {
		cfg.OwnerPassword = os.Getenv("TPM_OWNER_PASSWORD")
	}
	return cfg, nil
}

func (d *doctor) readAgentConfig(name string) (cfg tpm.Config, err error) {
	content, err := input.Read(name, d.cmd.InOrStdin(), cli.MaxConfig)
	if err != nil {
		return cfg, fmt.Errorf("read the configuration: %w", err)
	}
	file := config.NewLoader().Open(d.cmd.Context(), string(content))
	data, isFile, err := file.AgentData()
	switch {
	case err != nil:
		return cfg, cli.UsageError("%s: %w", name, err)
	case file.IsServers():
		return cfg, cli.UsageError("%s: this is SPIRE Server's configuration: name it behind --server, "+
			"or name SPIRE Agent's", name)
	case !isFile:
		data = config.Data{Text: string(content), File: name}
	case data.File == "":
		data.File = name
	}
	parsed, problems := agent.ParseConfig(data.Text)
	if len(problems) > 0 {
		return cfg, cli.UsageError("%s: %v: see tpm-attestor validate", data.File, problems[0])
	}
	return parsed, nil
}

// serverConfig returns the configuration that is to decide; nil if none was named.
func (d *doctor) serverConfig(name string) (*config.Config, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // documented
	}
	content, err := input.Read(name, d.cmd.InOrStdin(), cli.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("read the server's configuration: %w", err)
	}
	c, err := config.NewLoader().LoadFile(d.cmd.Context(), string(content))
	if err != nil {
		return nil, cli.UsageError("%s: %w: see tpm-attestor validate", name, err)
	}
	return c, nil
}

// mayUseTPM checks whether a user may use the TPM's device.
func (d *doctor) mayUseTPM(u *access.User, device string) {
	path, _ := strings.CutPrefix(device, "unix:")
	if path == "" {
		return // the check of the device reports that there is none
	}
	err := u.May(path, access.Read|access.Write)
	if denied, ok := errors.AsType[*access.DeniedError](err); ok {
		d.add("permission", statusFault, denied.Remedy(), "%v", denied)
		return
	}
	if err == nil {
		d.ok("permission", "user %s may use %s", u.Name, path)
	}
}

// ask calls f, which uses the TPM, with a time limit that is long enough for a slow TPM.
func (d *doctor) ask(f func(context.Context) error) error {
	const slow = 5 * time.Minute
	ctx, cancel := context.WithTimeout(d.cmd.Context(), slow)
	defer cancel()
	return tpm.Do(ctx, func() error { return f(ctx) })
}

// health checks the TPM itself, and reports whether it answers.
func (d *doctor) health(t *tpm.TPM) bool {
	var h *tpm.Health
	err := d.ask(func(ctx context.Context) (err error) {
		h, err = t.Health(ctx)
		return err
	})
	if err != nil {
		d.failed("device", err)
		return false
	}
	d.ok("device", "%s answers", t.Device())
	if h.LockedOut {
		d.add("lockout", statusFault, "wait, or reset it with tpm2_dictionarylockout --clear-lockout",
			"the TPM is locked out after %d of %d wrong passwords; it forgets one every %v",
			h.FailedTries, h.MostTries, h.Recovery)
	} else {
		d.ok("lockout", "%d of %d wrong passwords", h.FailedTries, h.MostTries)
	}
	if len(h.Keys)+len(h.Sessions) == 0 {
		d.ok("leftovers", "no key and no session is loaded")
		return true
	}
	d.add("leftovers", statusFault,
		"flush them, if no program uses them, with tpm2_flushcontext -t -l -s, and use /dev/tpmrm0",
		"%d keys and %d sessions are loaded (%s), of which an agent left %d; the TPM has room for %d more keys",
		len(h.Keys), len(h.Sessions), handles(slices.Concat(h.Keys, h.Sessions)), h.Own, h.Room)
	return true
}

func handles(all []uint32) string {
	const most = 8
	var texts []string
	for _, h := range all[:min(len(all), most)] {
		texts = append(texts, fmt.Sprintf("%#08x", h))
	}
	if len(all) > most {
		texts = append(texts, "…")
	}
	return strings.Join(texts, ", ")
}

// certificates checks the EK certificates. It returns the times from which those are valid that could be read.
func (d *doctor) certificates(t *tpm.TPM) []time.Time {
	var r *tpm.Report
	err := d.ask(func(ctx context.Context) (err error) {
		r, err = t.Inspect(ctx)
		return err
	})
	if err != nil {
		d.failed("ek", err)
		return nil
	}
	e := ekreport.FromTPM(r)
	d.ok("ek", "%s (%s)", e.Hash, e.KeyType)
	if r.EK.Certificate == nil {
		d.note("certificate", "the TPM has none for this EK: list the machine by its EK hash")
	}
	var valid []time.Time
	for i := range r.Certificates {
		c := &r.Certificates[i]
		if c.Err != nil {
			d.add("certificate", statusFault, "list the machine by its EK hash, or make the index readable",
				"it cannot be read: %v", c.Err)
			continue
		}
		valid = append(valid, c.Certificate.NotBefore)
		d.certificate(c, r)
	}
	if r.ChainErr != nil {
		d.add("certificate", statusFault, "add the CA's certificates to the server's CA files", "%v", r.ChainErr)
	}
	return valid
}

// certificate checks one EK certificate.
func (d *doctor) certificate(c *tpm.Certificate, r *tpm.Report) {
	at := fmt.Sprintf("that at NV index %#08x", c.Index)
	cert := c.Certificate
	if time.Now().After(cert.NotAfter) {
		d.add("certificate", statusFault, "list the machine by its EK hash: no ek_ca admits it by this certificate",
			"%s expired at %s", at, stamp(cert.NotAfter))
		return
	}
	for _, der := range r.Chain {
		issuer, err := x509.ParseCertificate(der)
		if err == nil && cert.CheckSignatureFrom(issuer) == nil {
			d.ok("certificate", "%s is valid until %s, and the TPM has its issuer", at, stamp(cert.NotAfter))
			return
		}
	}
	where := "it names no URL for it"
	if len(cert.IssuingCertificateURL) > 0 {
		where = "it is at " + strconv.Quote(cert.IssuingCertificateURL[0])
	}
	d.note("certificate", "%s is valid until %s; an ek_ca needs its issuer %s among its CAs or by aia_hosts: %s",
		at, stamp(cert.NotAfter), strconv.Quote(cert.Issuer.String()), where)
}

// eventLog checks the event log. If the log cannot be read, that is no fault unless the server asks for it.
func (d *doctor) eventLog(t *tpm.TPM, server *config.Config, hasTPM bool) {
	var raw []byte
	err := d.Within(d.cmd.Context(), func(context.Context) (err error) {
		raw, err = t.EventLog()
		return err
	})
	switch {
	case err == nil:
	case errors.Is(err, finding.ErrHangs),
		server != nil && server.Quote != nil && server.Quote.EventLog != config.EventLogOff:
		d.failed("event log", err)
		return
	default:
		d.note("event log", "%v", err)
		return
	}
	log, err := eventlog.Parse(raw)
	if err != nil {
		d.add("event log", statusFault, "reboot; if that does not help, update the machine's firmware",
			"it cannot be used: %v", err)
		return
	}
	if !hasTPM {
		d.ok("event log", "%d events; without the TPM it is not known whether they are true", len(log.Events))
		return
	}
	d.replay(t, log, raw)
}

// replay compares the event log with the PCRs.
func (d *doctor) replay(t *tpm.TPM, log *eventlog.Log, raw []byte) {
	const judged = 8 // PCRs 0 to 7 are the firmware's
	bank := pcrs.BankOf(log)
	quote := &attestor.Quote{Bank: bank}
	err := d.ask(func(ctx context.Context) (err error) {
		quote.PCRs, err = t.PCRs(ctx, &attestor.QuoteRequest{Bank: bank, PCRs: pcrs.All()[:judged]})
		return err
	})
	if err != nil {
		d.failed("event log", err)
		return
	}
	b := boot.Of(quote, raw, true)
	if b.Log == nil {
		d.add("event log", statusFault, "reboot", "%s", b.NoLog)
		return
	}
	var differ []string
	for _, pcr := range slices.Sorted(maps.Keys(b.Log.Replays)) {
		if !b.Log.Replays[pcr] {
			differ = append(differ, strconv.Itoa(pcr))
		}
	}
	if len(differ) > 0 {
		d.add("event log", statusFault, "look at both with tpm-attestor boot show",
			"it does not account for PCR %s of bank %s", strings.Join(differ, ", "), bank)
		return
	}
	d.ok("event log", "%d events account for PCRs 0 to %d of bank %s", len(log.Events), judged-1, bank)
}
