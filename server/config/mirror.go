package config

import (
	"maps"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca/mirror"
)

// Mirrored returns what a mirror has to have for all sources that fetch
// certificates, with the vendors' services where the configuration has those of
// the mirror. Nothing is to be mirrored where it names neither hosts nor services.
func (c *Config) Mirrored() mirror.Config {
	var m mirror.Config
	for _, member := range c.Members {
		cfg, ok := member.Config.(ekca.Config)
		if !ok {
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
