package certificates

import (
	"maps"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// mirrored returns what a mirror needs for all sources of a configuration that fetch certificates. Base URLs on the
// mirror itself are replaced by those of the vendors' services. If the configuration has neither hosts nor
// services, the result is empty.
func mirrored(c *config.Config) mirror.Config {
	var m mirror.Config
	for _, member := range c.Members {
		var cfg ekca.Config
		switch of := member.Config.(type) {
		case ekca.Config:
			cfg = of
		case devid.Config:
			cfg.Config = of
		default:
			continue
		}
		m.Hosts = append(m.Hosts, cfg.AIAHosts...)
		m.CRLs = m.CRLs || cfg.CRL == ekca.CRLIfAvailable || cfg.CRL == ekca.CRLRequired
		for _, name := range slices.Sorted(maps.Keys(cfg.EKCertificateURLs)) {
			s := mirror.Service{Name: name, Base: mirror.Upstream(cfg.EKCertificateURLs[name], cfg.MirrorURL)}
			if !slices.Contains(m.Services, s) {
				m.Services = append(m.Services, s)
			}
		}
	}
	slices.Sort(m.Hosts)
	m.Hosts = slices.Compact(m.Hosts)
	return m
}
