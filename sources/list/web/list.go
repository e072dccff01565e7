package web

import (
	"errors"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// ListConfig says where a list is and how it is kept. Only URL is required. Fields without a
// comment are described at the fields of the same name in Config.
type ListConfig struct {
	URL                           string
	CAPath                        string
	ClientCertPath, ClientKeyPath string
	BearerTokenPath               string
	ServerID, Auth                string
	Identity                      IdentityProvider
	Timeout                       time.Duration
	MaxBytes                      int64

	// PollInterval is the longest time from one attempt to the next: list.Config.Every.
	PollInterval time.Duration
	// MaxStaleness is how long the list is served after the server has last answered 200 or 304:
	// list.Config.MaxStaleness.
	MaxStaleness time.Duration
	// CachePath is a file from which the list is served after a restart (list.Cache). If it is
	// empty, there is no cache.
	CachePath string
	// SignatureURL, PublicKeyPath and ListID are all set or all empty. If they are set, the list is
	// served only if a key in PublicKeyPath has signed its decoded content, and if it has a serial,
	// an expiry and the name ListID (list.Signing).
	SignatureURL, PublicKeyPath, ListID string
	// Now is the clock for staleness, for expiry, and for verifying the server's certificate;
	// time.Now if it is nil.
	Now func() time.Time
}

// NewList checks the configuration and returns the list. It reads nothing: the first Load does. If
// the configuration is invalid, it returns the joined errors, one sources.FieldError for each
// problem.
func NewList[T list.Content[T]](parse list.Parse[T], cfg ListConfig) (*list.List[T], error) {
	origin, err := New(Config{
		URL: cfg.URL, SignatureURL: cfg.SignatureURL, CAPath: cfg.CAPath,
		ClientCertPath: cfg.ClientCertPath, ClientKeyPath: cfg.ClientKeyPath, BearerTokenPath: cfg.BearerTokenPath,
		ServerID: cfg.ServerID, Auth: cfg.Auth, Identity: cfg.Identity,
		Timeout: cfg.Timeout, MaxBytes: cfg.MaxBytes, Now: cfg.Now,
	})
	keep := list.Config{Remote: true, Every: cfg.PollInterval, MaxStaleness: cfg.MaxStaleness, Now: cfg.Now}
	signing, badSigning := cfg.signing()
	keep.Signing = signing
	if cfg.CachePath != "" {
		of := []string{cfg.URL}
		if cfg.ListID != "" {
			of = append(of, cfg.ListID)
		}
		limit, _ := list.LimitOf(cfg.MaxBytes) // New has reported an invalid limit
		keep.Cache = list.NewCache(cfg.CachePath, limit, of...)
	}
	l, badTimes := list.New(parse, origin, keep)
	if err := errors.Join(err, badSigning, badTimes); err != nil {
		return nil, err
	}
	return l, nil
}

// signing returns whose signature the list needs; nil if it needs none.
func (c ListConfig) signing() (*list.Signing, error) {
	if c.SignatureURL == "" && c.PublicKeyPath == "" && c.ListID == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	var errs []error
	for _, f := range []struct{ field, value string }{
		{"signature_url", c.SignatureURL}, {"public_key_path", c.PublicKeyPath}, {"list_id", c.ListID},
	} {
		if f.value == "" {
			errs = append(errs, sources.BadField(f.field, "is missing: a signed list needs all three, "+
				"signature_url, public_key_path and list_id"))
		}
	}
	return &list.Signing{KeyPath: c.PublicKeyPath, Name: c.ListID}, errors.Join(errs...)
}
