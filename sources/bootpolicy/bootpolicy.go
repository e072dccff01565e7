// Package bootpolicy is a source that lists machines by what their TPM proves about their boot:
// those that meet a boot profile. The profiles are a document of package bootprofiles, in a file or
// behind a web server.
//
// A boot is not an identity: somebody who emulates a TPM can have it quote any values. So a rule
// needs another source besides, one that knows the TPM.
package bootpolicy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/file"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

// Config says where the profiles are. Quote and either Path or URL are required.
type Config struct {
	// Path is the file with the profiles: file.Config.Path. Of the fields of ListConfig,
	// only MaxBytes, PollInterval, MaxStaleness and Now may be set with it.
	Path string
	// ListConfig says which web server has the profiles. The default and the maximum of MaxBytes is
	// bootprofiles.MaxBytes.
	web.ListConfig
	// Quote is what the server asks machines to prove. Profiles that need more are refused.
	Quote *bootprofiles.Quote
}

// Source lists machines that meet a boot profile. It is safe for concurrent use.
type Source struct {
	*list.List[*bootprofiles.Document]
	quote  bootprofiles.Quote
	now    func() time.Time
	origin *file.Origin // nil if the profiles are not in a file
}

// New checks the configuration and returns the source. It reads nothing: the first Load does. If
// the configuration is invalid, it returns the joined errors, one sources.FieldError for each
// problem.
func New(cfg Config) (*Source, error) {
	var errs []error
	if cfg.Quote == nil {
		errs = append(errs, sources.BadField("quote", "is missing: machines are not asked for their PCRs, so none "+
			"could meet a profile; write a block such as quote { pcrs = [0, 2, 4, 7] } beside the sources"))
		cfg.Quote = &bootprofiles.Quote{}
	}
	if cfg.MaxBytes < 0 || cfg.MaxBytes > bootprofiles.MaxBytes {
		errs = append(errs, sources.BadField("max_bytes",
			"is %d, but must be from 1 to %d", cfg.MaxBytes, bootprofiles.MaxBytes))
		cfg.MaxBytes = 0
	}
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, bootprofiles.MaxBytes)
	s := &Source{quote: *cfg.Quote, now: cfg.Now}
	if s.now == nil {
		s.now = time.Now
	}
	if err := errors.Join(append(errs, s.open(cfg))...); err != nil {
		return nil, err
	}
	return s, nil
}

// open creates the list of profiles.
func (s *Source) open(cfg Config) (err error) {
	parse := func(data []byte) (*bootprofiles.Document, error) {
		return bootprofiles.Parse(data, bootprofiles.Options{Quote: &s.quote})
	}
	if (cfg.Path == "") == (cfg.URL == "") {
		return sources.BadField("path",
			`write either path = "/etc/tpm/boot.json" or url = "https://allowlist.example.org/boot.json"`)
	}
	if cfg.URL != "" {
		s.List, err = web.NewList(parse, cfg.ListConfig)
		return err
	}
	s.List, s.origin, err = file.NewList(parse,
		file.Config{Path: cfg.Path, MaxBytes: cfg.MaxBytes, Every: cfg.PollInterval, Now: cfg.Now}, cfg.MaxStaleness)
	return errors.Join(err, cfg.onlyOfWeb())
}

// onlyOfWeb returns an error for each field that is set but is only for a web server.
func (c Config) onlyOfWeb() error {
	var errs []error
	for _, f := range []struct {
		field string
		set   bool
	}{
		{"ca_path", c.CAPath != ""},
		{"client_cert_path", c.ClientCertPath != ""},
		{"client_key_path", c.ClientKeyPath != ""},
		{"bearer_token_path", c.BearerTokenPath != ""},
		{"auth", c.Auth != ""},
		{"server_id", c.ServerID != ""},
		{"timeout", c.Timeout != 0},
		{"cache_path", c.CachePath != ""},
		{"signature_url", c.SignatureURL != ""},
		{"public_key_path", c.PublicKeyPath != ""},
		{"list_id", c.ListID != ""},
	} {
		if f.set {
			errs = append(errs, sources.BadField(f.field,
				"cannot be combined with path, since it is about a web server: remove it, or write url instead"))
		}
	}
	return errors.Join(errs...)
}

// Watch implements sources.Watcher. It reports no changes behind a web server.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	if s.origin == nil {
		<-ctx.Done()
		return nil
	}
	return s.origin.Watch(ctx, changed)
}

// errOtherQuote is the error for a machine that was asked for other PCRs, because the configuration
// has changed between its challenge and its answer.
var errOtherQuote = errors.New("the machine has quoted other PCRs than the configuration asks for by now: " +
	"it has to attest again")

// Check implements sources.Source. It compares the machine's boot with each profile, in memory, and
// cannot tell if there are no profiles that may be used.
func (s *Source) Check(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if ev.Proof == nil {
		return sources.Verdict{}, sources.ErrNeedsChallenge
	}
	d, err := s.Current()
	if err != nil {
		return sources.Verdict{}, err
	}
	boot, reason := ev.Proof.Boot, newReason(d.Header())
	switch {
	case boot == nil:
		reason.add("the machine has not quoted its PCRs, as its agent cannot or does not do so")
		return sources.Verdict{Reason: reason.String()}, nil
	case !s.asked(boot):
		return sources.Verdict{}, errOtherQuote
	}
	j := judgement{boot: boot, now: s.now(), profiles: d.Profiles()}
	return j.verdict(reason)
}

// asked reports whether a machine has quoted what it is asked for.
func (s *Source) asked(boot *sources.Boot) bool {
	return boot.Bank == s.quote.Bank && !slices.ContainsFunc(s.quote.PCRs, func(pcr int) bool {
		_, quoted := boot.PCRs[pcr]
		return !quoted
	})
}

// A judgement compares a boot with all profiles.
type judgement struct {
	boot     *sources.Boot
	now      time.Time
	profiles []bootprofiles.Profile
}

// verdict lists a machine that meets a profile. It cannot tell if all profiles that are met have
// more labels together than a machine may have.
func (j *judgement) verdict(reason *reason) (sources.Verdict, error) {
	var met sources.Attributes
	var unmet []unmet
	for i := range j.profiles {
		p := &j.profiles[i]
		misses := j.misses(p)
		if len(misses) > 0 {
			unmet = append(unmet, newUnmet(p, misses))
			continue
		}
		met.Profiles = append(met.Profiles, p.Name)
		met.Labels = append(met.Labels, p.Labels...)
	}
	if len(met.Profiles) == 0 {
		j.explain(reason, unmet)
		return sources.Verdict{Reason: reason.String()}, nil
	}
	slices.Sort(met.Profiles)
	slices.Sort(met.Labels)
	met.Labels = slices.Compact(met.Labels)
	if len(met.Labels) > sources.MaxLabels {
		return sources.Verdict{}, fmt.Errorf("the %d profiles that are met have %d labels together, more than %d",
			len(met.Profiles), len(met.Labels), sources.MaxLabels)
	}
	reason.add("meets %s", strings.Join(met.Profiles, ", "))
	return sources.Verdict{Listed: true, Reason: reason.String(), Attributes: met}, nil
}
