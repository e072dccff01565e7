package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// Examples, for a person.
const (
	bundlesExample  = `bundles = { infineon = "/etc/tpm/infineon.pem" }`
	aiaHostsExample = `aia_hosts = ["pki.infineon.com"]`
	servicesExample = `ek_certificate_urls = { intel = "https://ekop.intel.com/ekcertservice/" }`
)

func decodeEKCA(b *body) definition {
	cfg := ekca.Config{
		CAPath:            b.text("ca_path"),
		Bundles:           b.textMap("bundles", bundlesExample),
		PollInterval:      b.duration("poll_interval", defaultPoll, leastPoll, mostPoll),
		AIAHosts:          b.texts("aia_hosts"),
		EKCertificateURLs: b.textMap("ek_certificate_urls", servicesExample),
		MirrorURL:         b.text("mirror_url"),
		CRL:               ekca.CRLMode(b.oneOf("crl", crlModes)),
		CachePath:         b.text("cache_path"),
	}
	if b.has("ca_path") == b.has("bundles") {
		b.fail("ca_path", "write either ca_path = \"/etc/tpm/cas\" or %s", bundlesExample)
	}
	checkFetching(b, cfg)
	return ekCA(b, cfg, "ca_path")
}

// crlModes are the values of the key crl; the first is its default.
var crlModes = []string{string(ekca.CRLOff), string(ekca.CRLIfAvailable), string(ekca.CRLRequired)}

// checkFetching refuses keys that would have no effect, since who wrote them
// meant one.
func checkFetching(b *body, cfg ekca.Config) {
	services := []string{ekca.EKServiceAMD, ekca.EKServiceIntel}
	for _, name := range slices.Sorted(maps.Keys(cfg.EKCertificateURLs)) {
		if !slices.Contains(services, name) {
			b.fail("ek_certificate_urls", "%s is not a known EK certificate service%s",
				printable(name), b.problems.suggest(name, services))
		}
	}
	if err := fetchable(certfetch.Config{Hosts: cfg.AIAHosts}); err != nil {
		b.fail("aia_hosts", "%v", err)
	}
	if err := fetchable(certfetch.Config{Bases: slices.Sorted(maps.Values(cfg.EKCertificateURLs))}); err != nil {
		b.fail("ek_certificate_urls", "%v", err)
	}
	if err := fetchable(certfetch.Config{Mirror: cfg.MirrorURL}); err != nil {
		b.fail("mirror_url", "%v", err)
	}
	hosts := b.has("aia_hosts")
	if cfg.CRL != ekca.CRLOff && !hosts {
		b.fail("crl", "is %q, but there are no hosts that CRLs may be fetched from: write %s",
			string(cfg.CRL), aiaHostsExample)
	}
	if b.has("mirror_url") && !hosts {
		b.fail("mirror_url", "replaces the hosts in aia_hosts, but there are none: write %s", aiaHostsExample)
	}
	if b.has("cache_path") && !hosts && !b.has("ek_certificate_urls") {
		b.fail("cache_path", "nothing is fetched, so there is nothing to cache: "+
			"write %s or %s, or leave the key out", aiaHostsExample, servicesExample)
	}
}

// fetchable says why something may not be asked.
func fetchable(cfg certfetch.Config) error {
	_, err := certfetch.New(cfg)
	if err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

func ekCA(b *body, cfg ekca.Config, key string) definition {
	d := definition{
		config:   cfg,
		cache:    cfg.CachePath,
		open:     func() (sources.Source, error) { return ekca.New(cfg) },
		gives:    []agentpath.Field{agentpath.Issuer, agentpath.Serial},
		byVendor: true,
	}
	if b.has("bundles") {
		d.gives = append(d.gives, agentpath.CA)
	}
	if cfg.CAPath != "" {
		d.files = append(d.files, file{at: under(b.path, key), path: cfg.CAPath})
	}
	for name, path := range cfg.Bundles {
		d.files = append(d.files, file{at: under(under(b.path, "bundles"), name), path: path})
	}
	if cfg.CachePath != "" {
		d.files = append(d.files, cacheFile(b.path, cfg.CachePath))
	}
	d.warnings = fetchingWarnings(b.path, cfg)
	return d
}

// fetchingWarnings says what a person should know of fetching that is
// configured.
func fetchingWarnings(path string, cfg ekca.Config) []Problem {
	fetches := len(cfg.AIAHosts) > 0 || len(cfg.EKCertificateURLs) > 0
	var all []Problem
	warn := func(at, format string, args ...any) {
		all = append(all, Problem{at, fmt.Sprintf(format, args...)})
	}
	if fetches && cfg.CachePath == "" {
		warn(under(path, "cache_path"), "is missing: what has been fetched is lost at a restart, and until it "+
			"can be fetched again, machines that need it are told to retry")
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.EKCertificateURLs)) {
		base := cfg.EKCertificateURLs[name]
		if cfg.MirrorURL != "" && !strings.HasPrefix(base, cfg.MirrorURL) {
			warn(under(under(path, "ek_certificate_urls"), name), "is not under mirror_url, "+
				"which replaces aia_hosts only: %q itself is contacted", shorten(base))
		}
	}
	return all
}

// oneOf returns one of a few strings, the first of them where the key is not
// there or has another value.
func (b *body) oneOf(key string, values []string) string {
	s := b.text(key)
	if s == "" {
		return values[0]
	}
	if !slices.Contains(values, s) {
		b.fail(key, `is %q, but must be one of "%s"`, shorten(s), strings.Join(values, `", "`))
		return values[0]
	}
	return s
}
