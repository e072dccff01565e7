package httplist

import (
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// AuthSPIFFE is the one value of Config.Auth.
const AuthSPIFFE = "spiffe"

// checkNumbers checks the times and the limit of a configuration that has its defaults.
func (c Config) checkNumbers() error {
	var errs []error
	for _, d := range []struct {
		field string
		value time.Duration
	}{{"timeout", c.Timeout}, {"poll_interval", c.PollInterval}, {"max_staleness", c.MaxStaleness}} {
		if d.value < 0 {
			errs = append(errs, sources.BadField(d.field, "is %v, but must be positive", d.value))
		}
	}
	if c.MaxStaleness >= 0 && c.MaxStaleness < 2*c.PollInterval {
		errs = append(errs, sources.BadField("max_staleness",
			"is %v, but must be at least twice poll_interval, which is %v", c.MaxStaleness, c.PollInterval))
	}
	if c.MaxBytes < 0 || c.MaxBytes > eklist.MaxBytes {
		errs = append(errs, sources.BadField("max_bytes",
			"is %d, but must be from 1 to %d", c.MaxBytes, int64(eklist.MaxBytes)))
	}
	return errors.Join(errs...)
}

// checkServer checks how the web server and this one know each other.
func (c Config) checkServer() error {
	errs := []error{smallfile.CheckPair(c.ClientCertPath, c.ClientKeyPath)}
	if id, err := spiffeid.FromString(c.ServerID); c.ServerID != "" && (err != nil || id.Path() == "") {
		errs = append(errs, sources.BadField("server_id", "must be the SPIFFE ID of the web server"))
	}
	switch {
	case c.Auth == "" && c.ServerID != "":
		errs = append(errs, sources.BadField("auth", "is missing: write auth = %q, which server_id needs", AuthSPIFFE))
	case c.Auth == "":
	case c.Auth != AuthSPIFFE:
		errs = append(errs, sources.BadField("auth", "must be %q: write auth = %q, or leave the key out",
			AuthSPIFFE, AuthSPIFFE))
	default:
		errs = append(errs, c.checkSPIFFE()...)
	}
	return errors.Join(errs...)
}

// checkSPIFFE checks what belongs to Config.Auth, and what does not.
func (c Config) checkSPIFFE() (errs []error) {
	switch {
	case c.ServerID == "":
		errs = append(errs, sources.BadField("server_id", "is missing"))
	case c.Identity == nil:
		errs = append(errs, errors.New("nothing provides the X.509-SVID and the trust bundle that auth needs"))
	}
	const svid = "the SPIRE server presents its own X.509-SVID"
	for _, f := range []struct{ field, value, instead string }{
		{"ca_path", c.CAPath, "SPIRE's trust bundle verifies the web server"},
		{"client_cert_path", c.ClientCertPath, svid},
		{"client_key_path", c.ClientKeyPath, svid},
	} {
		if f.value != "" {
			errs = append(errs, sources.BadField(f.field, "cannot be combined with auth = %q, where %s: "+
				"remove it, or remove auth and server_id", AuthSPIFFE, f.instead))
		}
	}
	return errs
}

// parseURL parses the URL in a field; u is nil if it is none. The errors do not show it:
// it may hold a secret.
func parseURL(field, text string) (u *url.URL, err error) {
	if text == "" {
		return nil, sources.BadField(field, "is missing")
	}
	u, err = url.Parse(text)
	if err != nil {
		return nil, sources.BadField(field, "is malformed: write https://<host>/<path>")
	}
	var errs []error
	if u.Scheme != "https" || u.Hostname() == "" {
		errs = append(errs, sources.BadField(field, "is not https://<host>/<path>"))
	}
	if u.User != nil {
		errs = append(errs, sources.BadField(field, "contains a user: use a client certificate or a bearer token"))
	}
	if u.Fragment != "" {
		errs = append(errs, sources.BadField(field, "contains a fragment: remove # and what follows"))
	}
	return u, errors.Join(errs...)
}

// checkSigned checks the fields of a signed list, of which there are all or none. list is
// the URL of the list, or nil if it is none.
func (c Config) checkSigned(list *url.URL) (signature *url.URL, err error) {
	var errs []error
	for _, f := range []struct{ field, value string }{
		{"signature_url", c.SignatureURL}, {"public_key_path", c.PublicKeyPath}, {"list_id", c.ListID},
	} {
		if f.value == "" {
			errs = append(errs, sources.BadField(f.field, "is missing: a signed list needs all three, "+
				"signature_url, public_key_path and list_id"))
		}
	}
	if c.SignatureURL == "" {
		return nil, errors.Join(errs...)
	}
	signature, err = parseURL("signature_url", c.SignatureURL)
	errs = append(errs, err)
	if signature != nil && list != nil && list.Host != "" && !strings.EqualFold(signature.Host, list.Host) {
		errs = append(errs, sources.BadField("signature_url", "is on a different host from the list: put both on the same one"))
	}
	return signature, errors.Join(errs...)
}
