package web

import (
	"errors"
	"net/url"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// AuthSPIFFE is the only value of Config.Auth.
const AuthSPIFFE = "spiffe"

// checkServer checks how the web server and this server authenticate each other.
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

// checkSPIFFE checks the fields that Config.Auth requires and those that it excludes.
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

// parseURL parses the URL in a field. u is nil if the text is not a URL. The errors do not show it,
// since it may hold a secret.
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

// parseSignatureURL parses the URL of the signature, and returns nil if there is none. list is the
// URL of the list, or nil if that is invalid.
func parseSignatureURL(text string, list *url.URL) (*url.URL, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	u, err := parseURL("signature_url", text)
	if u != nil && list != nil && list.Host != "" && !strings.EqualFold(u.Host, list.Host) {
		err = errors.Join(err, sources.BadField("signature_url",
			"is on a different host from the list: put both on the same one"))
	}
	return u, err
}
