package truststore

import (
	"context"
	"errors"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// Limits on what is read. A file over the first limit is refused; over one of the others, the whole
// set is refused.
const (
	// MaxFileSize is the maximum size of one file, in bytes.
	MaxFileSize = 16 << 20
	// MaxTotalSize is the maximum size of all files together, in bytes.
	MaxTotalSize = 64 << 20
	// MaxFiles is the maximum number of names in one folder.
	MaxFiles = 10_000
	// MaxCertificates is the maximum number of CA certificates.
	MaxCertificates = certs.MaxCertificates
)

// DefaultPollInterval is how often files are checked for changes.
const DefaultPollInterval = 30 * time.Second

// Config says where the authorities are. Either CAPath or Bundles must be set.
//
// A path is a regular file, or a folder of regular files; both may be reached through symbolic
// links. A file is PEM with any number of CERTIFICATE blocks, or the DER of one or more
// certificates. In a folder, names that begin with a dot (a mounted ConfigMap's "..data", ".git",
// what NFS leaves of a deleted file) and subfolders are skipped.
//
// What cannot be used is left out and named in Status.Warnings, and the rest is used: a file
// without a certificate; a certificate that cannot be parsed, has expired, is a duplicate or is not
// a CA's; a private key, which does not belong there. A file that is cut off within a certificate,
// damaged, empty or unreadable is left out as a whole; but if it was intact at an earlier Load,
// what it held then stays in use.
//
// Load fails if a path is missing, if it is a folder without files, such as a mount point with
// nothing mounted, or if it is itself a file that cannot be read. What was loaded from that path
// before stays, and changes at other paths take effect. If nothing was loaded before, or if nothing
// usable is left at all, nothing changes.
//
// To withdraw a CA, delete its file or write the file without it. To withdraw the last CA of a
// path, remove the path from the configuration.
type Config struct {
	// CAPath is a file or a folder of certificates or PKCS #7 bundles, PEM or DER.
	CAPath string
	// Bundles are such files or folders, by the name that is in their selectors: 1 to 64 characters
	// of a-z, 0-9, _ and -. A CA may be in several.
	Bundles map[string]string
	// MayBeEmpty allows CAPath to be a folder that has no files yet: then no machine is listed, and
	// Status has a warning. If files were loaded from the folder before and it is empty now, its
	// mount is probably gone, and that is an error, as without MayBeEmpty. No configuration key
	// sets it.
	MayBeEmpty bool
	// PollInterval is how often the files are checked for changes; DefaultPollInterval if it is
	// zero.
	PollInterval time.Duration

	// AIAHosts are the hosts that may be asked for issuers and CRLs, each a host or host:port, by
	// default with ports 80 and 443. A host at a private address must be given as that IP address.
	// If there are none, nothing that a certificate names is fetched.
	AIAHosts []string
	// MirrorURL is the operator's own web server, at any address, from which
	// <MirrorURL>/<host>/<path> is requested instead of asking the AIAHosts.
	MirrorURL string
	// CRL says how CRLs are used for each certificate of a chain below the configured CA: those at
	// its HTTP distribution points on AIAHosts, in their order, until one can be used. That is a
	// full CRL, signed with SHA-256 or stronger, of the certificate's issuer or of the cRLIssuer at
	// the distribution point (RFC 5280, 6.3.3), which must be above the certificate or configured.
	// It must be current, for this certificate, of at most 4 MiB, and not issued before another one
	// of that CA that is kept. It is fetched again when the next one is due, after 7 days at the
	// latest, and after a day if the list does not say. A certificate that a CRL lists is revoked,
	// at any age of the CRL and by any clock, until a newer CRL that is current does not list it.
	// Any mode but certs.CRLOff requires AIAHosts.
	CRL certs.CRLMode
	// CachePath is a bbolt file in which fetched objects survive a restart; if it is empty, they
	// are kept only in memory.
	CachePath string

	// Now is the clock by which certificates are verified; time.Now if it is nil.
	Now func() time.Time

	// Bases are the URLs below which a Question wants leaves: see fetch.Config.Bases. The code that
	// sets them must have checked them. They have no configuration key of their own.
	Bases []string
	// Dial makes the connections in a test: see fetch.Config.Dial.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Patience is for tests: see fetch.Config.Patience.
	Patience time.Duration
}

// locations returns the configured paths in the order of their bundles' names.
func locations(cfg Config) []location {
	if cfg.CAPath != "" {
		return []location{{path: cfg.CAPath}}
	}
	paths := make([]location, 0, len(cfg.Bundles))
	for _, name := range slices.Sorted(maps.Keys(cfg.Bundles)) {
		paths = append(paths, location{bundle: name, path: cfg.Bundles[name]})
	}
	return paths
}

// fetches reports whether anything may be fetched.
func (c *Config) fetches() bool { return len(c.AIAHosts) > 0 || len(c.Bases) > 0 }

// Check returns all mistakes in a configuration, joined, one sources.FieldError for each. New
// returns the same.
func (c *Config) Check() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, sources.BadField(field, format, args...))
	}
	if (c.CAPath != "") == (len(c.Bundles) > 0) {
		bad("ca_path", `write either ca_path = "/etc/tpm/cas" or bundles = { <name> = "<file or folder>" }`)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bundles)) {
		switch {
		case !bundleName.MatchString(name):
			bad("bundles", "%.80q is not a valid name: use 1 to 64 of a-z, 0-9, _ and -", name)
		case c.Bundles[name] == "":
			bad("bundles", "%s: is empty: name a file or a folder", name)
		}
	}
	if c.PollInterval < 0 {
		bad("poll_interval", "is %v, but must be positive", c.PollInterval)
	}
	return errors.Join(append(errs, c.checkOrigins(), c.checkFetching())...)
}

var bundleName = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// checkOrigins checks the hosts and the mirror from which objects are fetched.
func (c *Config) checkOrigins() error {
	return errors.Join(
		CheckOrigins("aia_hosts", fetch.Config{Hosts: c.AIAHosts}),
		CheckOrigins("mirror_url", fetch.Config{Mirror: c.MirrorURL}),
	)
}

// CheckOrigins returns an error if the part of a fetch.Config that a field sets is invalid.
func CheckOrigins(field string, part fetch.Config) error {
	if _, err := fetch.New(part); err != nil {
		return sources.BadField(field, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// checkFetching refuses settings that would have no effect, since the operator meant them to have
// one.
func (c *Config) checkFetching() error {
	const write = `write aia_hosts = ["pki.infineon.com"]`
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, sources.BadField(field, format, args...))
	}
	none := len(c.AIAHosts) == 0
	switch c.CRL {
	case "", certs.CRLOff:
	case certs.CRLIfAvailable, certs.CRLRequired:
		if none {
			bad("crl", "is %q, but there are no hosts that CRLs may be fetched from: %s", c.CRL, write)
		}
	default:
		bad("crl", "must be one of %q, %q, %q", certs.CRLOff, certs.CRLIfAvailable, certs.CRLRequired)
	}
	if c.MirrorURL != "" && none {
		bad("mirror_url", "replaces the hosts in aia_hosts, but there are none: %s", write)
	}
	if c.CachePath != "" && !c.fetches() {
		bad("cache_path", "nothing is fetched, so there is nothing to cache: %s, or leave the key out", write)
	}
	return errors.Join(errs...)
}

// Warnings says what a person should know about a valid configuration.
func (c Config) Warnings() []sources.FieldError {
	if !c.fetches() || c.CachePath != "" {
		return nil
	}
	return []sources.FieldError{{Field: "cache_path", Problem: "is missing: what has been fetched " +
		"is lost at a restart, and until it can be fetched again, machines that need it are told to retry"}}
}
