package config

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	lists "github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// A kind of source.
type kind struct {
	name string
	// example is a block as an operator would write it.
	example string
	// read reads a block and returns the source with its Config.
	read func(*body, spire) (config any, source sources.Source)
	// gives are the fields of an agent's ID that the source can provide.
	gives []given
	// byVendor is true if the source knows vendors of TPMs, not each TPM.
	byVendor bool
	// online is true if each check needs the network.
	online bool
	// byBoot is true if the source knows what machines boot, not their TPMs.
	byBoot bool
	// byDevID is true if the source knows DevIDs, not the TPMs that hold their keys. Machines are then asked for
	// their DevID.
	byDevID bool
	// denies is the key that the source must have if a deny rule names it.
	denies need
	// neverDenies is why no deny rule may name the source; empty if one may.
	neverDenies string
}

// given is a field of an agent's ID that a source can provide. If key is not empty, the source can provide it only
// if its block has that key.
type given struct {
	field agentpath.Field
	key   string
}

// need is a key that must be set, and why. The zero value needs no key.
type need struct{ key, because string }

// spire is what sources need besides their blocks: from SPIRE, and about what machines are asked.
type spire struct {
	trustDomain spiffeid.TrustDomain // zero if it is not known
	identity    web.IdentityProvider
	quote       *Quote // nil if machines are not asked to quote
	// besideHashes is true for the source of the key ca_path if the key hash_path is set as well.
	besideHashes bool
}

// kinds returns all kinds of sources. To add a kind, add it here.
func kinds() []kind {
	return []kind{ekCA(), hashDir(), hashFile(), httpList(), sqlTable(), bootPolicy(), devID()}
}

// reader returns a function that reads the keys of a block into a Config and passes it to the source's constructor,
// which checks it. A constructor opens nothing, so it is called even if a key could not be read: an operator then
// sees all mistakes at once.
func reader[C any, S sources.Source](
	open func(C) (S, error), keys func(*C, spire) []key,
) func(*body, spire) (any, sources.Source) {
	return func(b *body, of spire) (any, sources.Source) {
		var cfg C
		b.readKeys(keys(&cfg, of))
		source, err := open(cfg)
		b.refuse(err)
		return cfg, source
	}
}

// The limits of durations. A request must end before the Set abandons it, which is after 30 seconds.
const (
	leastPoll, mostPoll         = time.Second, 24 * time.Hour
	leastStale, mostStale       = 2 * leastPoll, 366 * 24 * time.Hour
	leastRequest, mostRequest   = 100 * time.Millisecond, 25 * time.Second
	leastLookUp, mostLookUp     = 10 * time.Millisecond, 25 * time.Second
	leastLifetime, mostLifetime = time.Second, 24 * time.Hour
)

// nameOfMachine is the field that a list of machines provides.
func nameOfMachine() []given { return []given{{field: agentpath.Name}} }

// authorities returns the keys of a source that trusts certificate authorities. bundles is an example of the key
// bundles.
func authorities(c *truststore.Config, bundles string) []key {
	c.CRL = certs.CRLOff
	return []key{
		fileOrFolder("ca_path", &c.CAPath),
		pathMap("bundles", bundles, &c.Bundles),
		duration("poll_interval", &c.PollInterval, truststore.DefaultPollInterval, leastPoll, mostPoll),
		texts("aia_hosts", &c.AIAHosts),
		plain("mirror_url", &c.MirrorURL),
		plain("crl", &c.CRL),
		cacheFile("cache_path", &c.CachePath),
	}
}

func ekCA() kind {
	const (
		bundles  = `bundles = { infineon = "/etc/tpm/infineon.pem" }`
		services = `ek_certificate_urls = { intel = "https://ekop.intel.com/ekcertservice/" }`
	)
	return kind{
		name:    "ek_ca",
		example: `source "ek_ca" "vendors" { ca_path = "/etc/tpm/cas" }`,
		read: reader(ekca.New, func(c *ekca.Config, of spire) []key {
			c.MayBeEmpty = of.besideHashes
			return append(authorities(&c.Config, bundles),
				textMap("ek_certificate_urls", services, &c.EKCertificateURLs))
		}),
		gives:    []given{{agentpath.CA, "bundles"}, {field: agentpath.Issuer}, {field: agentpath.Serial}},
		byVendor: true,
	}
}

func hashDir() kind {
	return kind{
		name:    "hash_dir",
		example: `source "hash_dir" "machines" { path = "/srv/tpm/hashes" }`,
		read: reader(hashdir.New, func(c *hashdir.Config, _ spire) []key {
			return []key{
				folder("path", &c.Path).like(`"/srv/tpm/hashes"`),
				plain("marker", &c.Marker),
			}
		}),
		gives: nameOfMachine(),
		denies: need{"marker", "a deny rule uses this source, so an unmounted directory must not pass for " +
			`an empty one: create a file in it and write marker = "<its name>"`},
	}
}

func hashFile() kind {
	return kind{
		name:    "hash_file",
		example: `source "hash_file" "machines" { path = "/etc/tpm/machines.txt" }`,
		read: reader(hashfile.New, func(c *hashfile.Config, _ spire) []key {
			return []key{
				regularFile("path", &c.Path).like(`"/etc/tpm/machines.txt"`),
				duration("poll_interval", &c.PollInterval, lists.DefaultEvery, leastPoll, mostPoll),
				duration("max_staleness", &c.MaxStaleness, lists.DefaultMaxStaleness, leastStale, mostStale),
				integer("max_bytes", &c.MaxBytes, lists.DefaultMaxBytes, 1, lists.MostMaxBytes),
				flag("allow_empty", &c.AllowEmpty),
			}
		}),
		gives: nameOfMachine(),
	}
}

func httpList() kind {
	return kind{
		name:    "http",
		example: `source "http" "inventory" { url = "https://allowlist.example.org/tpm.json" }`,
		read: reader(httplist.New, func(c *httplist.Config, of spire) []key {
			return append(onWebServer(c, of, lists.DefaultMaxBytes, lists.MostMaxBytes),
				plain("url", &c.URL).like(`"https://allowlist.example.org/tpm.json"`))
		}),
		gives: nameOfMachine(),
	}
}

// onWebServer returns the keys of a list on a web server, except url.
func onWebServer(c *web.ListConfig, of spire, maxBytes, mostBytes int64) []key {
	return []key{
		regularFile("ca_path", &c.CAPath),
		regularFile("client_cert_path", &c.ClientCertPath),
		secretFile("client_key_path", &c.ClientKeyPath),
		secretFile("bearer_token_path", &c.BearerTokenPath),
		plain("auth", &c.Auth),
		serverID("server_id", c, of).like(`"spiffe://example.org/allowlist"`),
		beside("url", duration("timeout", &c.Timeout, web.DefaultTimeout, leastRequest, mostRequest)),
		duration("poll_interval", &c.PollInterval, lists.DefaultEvery, leastPoll, mostPoll),
		duration("max_staleness", &c.MaxStaleness, lists.DefaultMaxStaleness, leastStale, mostStale),
		integer("max_bytes", &c.MaxBytes, maxBytes, 1, mostBytes),
		cacheFile("cache_path", &c.CachePath),
		plain("signature_url", &c.SignatureURL),
		regularFile("public_key_path", &c.PublicKeyPath),
		plain("list_id", &c.ListID),
	}
}

// serverID is the key whose value is the SPIFFE ID of a web server in SPIRE's own trust domain. A source with that
// key needs SPIRE's identity. Every Config gets the same provider of it, so that equal configurations have equal
// Configs.
func serverID(name string, c *web.ListConfig, of spire) key {
	return key{name: name, read: func(b *body, name string) {
		plain(name, &c.ServerID).read(b, name)
		if c.ServerID == "" {
			return
		}
		c.Identity = of.identity
		id, err := spiffeid.FromString(c.ServerID)
		if err == nil && id.TrustDomain() != of.trustDomain && !of.trustDomain.IsZero() {
			b.fail(name, "is in the trust domain %q, but SPIRE's own is %q: "+
				"only web servers in SPIRE's own can be verified", id.TrustDomain().Name(), of.trustDomain.Name())
		}
	}}
}

func sqlTable() kind {
	return kind{
		name:    "sql",
		example: `source "sql" "fleet" { dialect = "postgres" dsn_path = "/etc/spire/tpm-database.dsn" }`,
		read: reader(sqltable.New, func(c *sqltable.Config, _ spire) []key {
			c.Query = sqltable.DefaultQuery
			return []key{
				plain("dialect", &c.Dialect).like(`"postgres"`),
				secretFile("dsn_path", &c.DSNPath).like(`"/etc/spire/tpm-database.dsn"`),
				plain("query", &c.Query),
				regularFile("ca_path", &c.CAPath),
				regularFile("client_cert_path", &c.ClientCertPath),
				secretFile("client_key_path", &c.ClientKeyPath),
				duration("timeout", &c.Timeout, sqltable.DefaultTimeout, leastLookUp, mostLookUp),
				integer("max_open_conns", &c.MaxOpenConns, sqltable.DefaultMaxOpenConns, 1, sqltable.MostOpenConns),
				duration("conn_max_lifetime", &c.ConnMaxLifetime,
					sqltable.DefaultConnMaxLifetime, leastLifetime, mostLifetime),
				flag("allow_unverified", &c.AllowUnverified),
			}
		}),
		online: true,
		gives:  nameOfMachine(),
	}
}

func bootPolicy() kind {
	return kind{
		name:    "boot_policy",
		example: `source "boot_policy" "golden" { path = "/etc/tpm/boot.json" }`,
		read: reader(bootpolicy.New, func(c *bootpolicy.Config, of spire) []key {
			if q := of.quote; q != nil {
				c.Quote = &bootprofiles.Quote{Bank: q.Bank, PCRs: q.PCRs, EventLog: q.EventLog != EventLogOff}
			}
			return append(onWebServer(&c.ListConfig, of, bootprofiles.MaxBytes, bootprofiles.MaxBytes),
				regularFile("path", &c.Path), plain("url", &c.URL))
		}),
		byBoot: true,
		neverDenies: "a machine that withholds its quote would not be listed by it, and so not be denied: " +
			"name it in the all of an allow rule instead",
	}
}

func devID() kind {
	const bundles = `bundles = { laptops = "/etc/tpm/laptops.pem" }`
	return kind{
		name:    "devid",
		example: `source "devid" "laptops" { ca_path = "/etc/tpm/devid-ca.pem" }`,
		read: reader(devid.New, func(c *devid.Config, _ spire) []key {
			return authorities(c, bundles)
		}),
		gives:   []given{{agentpath.CA, "bundles"}, {field: agentpath.DevIDFingerprint}},
		byDevID: true,
		neverDenies: "a machine that leaves out its DevID would not be listed by it, and so not be denied: " +
			"revoke the DevID's certificate instead, and name the source in the all of an allow rule",
	}
}

// noIdentity is the provider for configurations that are checked and never run.
type noIdentity struct{}

func (noIdentity) X509Identity(context.Context) (*x509svid.SVID, *x509bundle.Bundle, error) {
	return nil, nil, errors.New("there is no SPIRE server to ask")
}
