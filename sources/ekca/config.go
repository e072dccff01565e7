package ekca

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Limits on what is read. Exceeding the first refuses the file, exceeding one
// of the others refuses the whole set.
const (
	// MaxFileSize is the size of one file, in bytes.
	MaxFileSize = 16 << 20
	// MaxTotalSize is the size of all files together, in bytes.
	MaxTotalSize = 64 << 20
	// MaxFiles is the number of names in one folder.
	MaxFiles = 10_000
	// MaxCertificates is the number of CA certificates.
	MaxCertificates = 10_000
)

// The keys of Config.EKCertificateURLs.
const (
	EKServiceIntel = "intel"
	EKServiceAMD   = "amd"
)

// DefaultPollInterval is how often files are looked at for changes.
const DefaultPollInterval = 30 * time.Second

// CRLMode says what the certificate revocation lists (CRLs) of a chain's CAs mean.
type CRLMode string

// The modes. The empty one is CRLOff.
const (
	// CRLOff asks for no CRL.
	CRLOff CRLMode = "off"
	// CRLIfAvailable refuses a certificate that a CRL lists, and passes over a
	// CRL that cannot be had or used: Verdict.Unchecked says so.
	CRLIfAvailable CRLMode = "if_available"
	// CRLRequired cannot tell where a certificate has no CRL that can be had
	// and used.
	CRLRequired CRLMode = "required"
)

// Config is where the authorities are. Either CAPath or Bundles is set.
//
// A path is a regular file, or a folder of them, by links or not. A file is PEM
// with any number of CERTIFICATE blocks, or the DER of one or more
// certificates. Of a folder, names that begin with a dot are skipped (a mounted
// ConfigMap's "..data", ".git", what NFS leaves of a deleted file), and folders
// within it are not read.
//
// What cannot be used is left out and named in Status.Warnings, and the rest
// serves: a file without a certificate; a certificate that cannot be parsed, has
// expired, is given twice or is not a CA's; a private key, which does not belong
// there. A file that is cut off in a certificate, damaged, empty or unreadable is left
// out as a whole; if it was whole at an earlier Load, what it held then goes on
// serving.
//
// If a path is missing, is a folder without files, as that of a mount that is not
// there, or is itself a file that cannot be read, Load fails, and what was loaded
// before from that path stays; changes at other paths take effect. If there was
// nothing before, or if nothing usable is left at all, nothing changes.
//
// To withdraw a CA, delete its file or write the file without it; to withdraw
// the last one of a path, take the path out of the configuration.
type Config struct {
	// CAPath is a file or a folder of certificates or PKCS #7 bundles, PEM or DER.
	CAPath string
	// Bundles are such files or folders by the name that their selectors
	// carry, which matches [a-z0-9_-]+. A CA may be in several.
	Bundles map[string]string
	// PollInterval is how often the files are looked at for changes; 30
	// seconds where it is zero.
	PollInterval time.Duration

	// AIAHosts are the hosts that may be asked for issuers and CRLs, each a
	// host or host:port, by default ports 80 and 443; one that is at a private
	// address only where it is that IP address itself. None: nothing that a
	// certificate names is fetched.
	AIAHosts []string
	// EKCertificateURLs are the base URLs of the vendors' services for EK
	// certificates that a TPM does not carry, by EKServiceIntel and
	// EKServiceAMD. All of them are asked about a TPM that has sent none. None:
	// only certificates that the machine sends count.
	EKCertificateURLs map[string]string
	// MirrorURL is a web server of the operator's own, at whatever address, that
	// is asked for <MirrorURL>/<host>/<path> instead of the AIAHosts.
	MirrorURL string
	// CRL is what CRLs mean for each certificate of a chain below the configured
	// CA: those at its HTTP distribution points on AIAHosts, in their order,
	// until one can be used. That is a full CRL, signed with SHA-256 or stronger, of
	// the certificate's issuer or of the cRLIssuer at the distribution point (RFC
	// 5280, 6.3.3), which is above the certificate or configured; it is current, for
	// this certificate, of 4 MiB at most, and not issued before another one that is
	// kept of that CA. The next one is asked for when it is due, after 7 days at the
	// latest, and after a day if the list does not say. What a CRL lists is revoked
	// at any age and by any clock, until a newer CRL that is current does not list it.
	// Any mode but CRLOff needs AIAHosts.
	CRL CRLMode
	// CachePath is a bbolt file that keeps what has been fetched, for after a
	// restart; where it is empty, memory alone keeps it.
	CachePath string

	// Now is the clock that certificates are verified against; time.Now
	// where it is nil.
	Now func() time.Time
}

// locations returns the configured paths in the order of their bundles' names.
func locations(cfg Config) ([]location, error) {
	switch {
	case cfg.CAPath != "" && len(cfg.Bundles) > 0:
		return nil, errors.New("a CA path and bundles are both set: set only one of the two")
	case cfg.CAPath != "":
		return []location{{path: cfg.CAPath}}, nil
	case len(cfg.Bundles) == 0:
		return nil, errors.New("neither a CA path nor bundles are set: set one of the two")
	}
	paths := make([]location, 0, len(cfg.Bundles))
	for _, name := range slices.Sorted(maps.Keys(cfg.Bundles)) {
		path := cfg.Bundles[name]
		if !validName(name) {
			return nil, fmt.Errorf("bundle %q: a name is made of a-z, 0-9, _ and -", name)
		}
		if path == "" {
			return nil, fmt.Errorf("bundle %q: the path is empty", name)
		}
		paths = append(paths, location{bundle: name, path: path})
	}
	return paths, nil
}

// validName reports whether a bundle's name matches [a-z0-9_-]+.
func validName(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// validFetching checks what is said about fetching, apart from hosts and URLs.
func validFetching(cfg Config) error {
	for _, name := range slices.Sorted(maps.Keys(cfg.EKCertificateURLs)) {
		if name != EKServiceIntel && name != EKServiceAMD {
			return fmt.Errorf("EK certificate URL %q: there is no such service: write %q or %q",
				name, EKServiceIntel, EKServiceAMD)
		}
	}
	switch cfg.CRL {
	case "", CRLOff, CRLIfAvailable, CRLRequired:
	default:
		return fmt.Errorf("CRL mode %q: write %q, %q or %q", cfg.CRL, CRLOff, CRLIfAvailable, CRLRequired)
	}
	if len(cfg.AIAHosts) == 0 {
		switch {
		case cfg.CRL != "" && cfg.CRL != CRLOff:
			return fmt.Errorf("CRL mode %q without AIA hosts: name the hosts that may be asked for CRLs", cfg.CRL)
		case cfg.MirrorURL != "":
			return errors.New("a mirror URL without AIA hosts: name the hosts whose files the mirror has")
		case cfg.CachePath != "" && len(cfg.EKCertificateURLs) == 0:
			return errors.New("a cache path, but nothing to fetch: " +
				"set AIA hosts or EK certificate URLs, or leave out the cache")
		}
	}
	return nil
}
