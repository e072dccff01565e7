package server

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// agentID wraps errUnsure if a source that could not tell might have changed the ID.
var errUnsure = errors.New("a source could not tell")

// agentID returns the SPIFFE ID of an admitted machine. An ID must always belong to one and the same machine. So it
// is an error if sources disagree about a field of the template. The error wraps errUnsure if a source that could
// not tell might decide about a field, even if a rule without that source admits the machine.
func agentID(c *config.Config, ekHash sources.EKHash, d *policy.Decision) (spiffeid.ID, error) {
	t, values := c.AgentPath, agentpath.Values{agentpath.PubHash: ekHash.String()}
	for field := range values {
		f := agentpath.Field(field)
		if f == agentpath.PubHash || !t.Uses(f) {
			continue
		}
		value, err := oneValue(t, f, d.Attributes)
		if err != nil {
			return spiffeid.ID{}, err
		}
		knows := slices.IndexFunc(d.Missing, func(source string) bool { return c.MayGive(source, f) })
		// Every source that knows the serial number, issuer or fingerprint of a machine's
		// certificate knows the same ones. Names and bundles may differ.
		if knows >= 0 && (value == "" || f == agentpath.Name || f == agentpath.CA) {
			return spiffeid.ID{}, fmt.Errorf("the template %q needs %s, which the source %s may know: %w",
				t, f, d.Missing[knows], errUnsure)
		}
		values[field] = value
	}
	return t.ID(c.TrustDomain, &values)
}

// oneValue returns the value of a field, or nothing if no source knows one. It is an error if sources disagree.
func oneValue(t *agentpath.Template, f agentpath.Field, all []sources.Attributes) (string, error) {
	value := ""
	for i := range all {
		if t.OfEKCertificate(f) && all[i].Certificate == nil {
			continue
		}
		for _, v := range fieldValues(f, &all[i]) {
			if v != "" && value != "" && v != value {
				return "", fmt.Errorf("%s is ambiguous: both %.80q and %.80q", f, value, v)
			}
			if v != "" {
				value = v
			}
		}
	}
	return value, nil
}

// fieldValues returns the values of a field that one source knows. For a field of the EK certificate, a.Certificate
// must not be nil.
func fieldValues(f agentpath.Field, a *sources.Attributes) []string {
	switch {
	case f == agentpath.Name:
		return []string{a.Name}
	case f == agentpath.CA:
		return a.CAs
	case f == agentpath.Issuer:
		return []string{a.Certificate.IssuerKeyHash}
	case f == agentpath.Serial:
		return []string{a.Certificate.Serial}
	case f == agentpath.DevIDFingerprint && a.DevID != nil:
		return []string{a.DevID.Fingerprint}
	default:
		return nil
	}
}
