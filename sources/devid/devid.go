// Package devid is a source that knows a machine by the authority that issued its DevID, the
// device identity of IEEE 802.1AR: an organization's own certificate for a key in the
// machine's TPM.
//
// Before a source sees a DevID, the machine has proved that its key is in the same TPM as the
// challenged EK. If that TPM is software, so is the key: a DevID alone only says what its issuer
// says. So a rule needs another source besides, one that knows the TPM.
//
// A machine may say that it has no DevID; then it is not listed. So this source is for saying who
// is admitted, never for saying who is not.
//
// As for EK certificates, package truststore manages the CA files, the chains and what is fetched.
package devid

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
)

// Config says where the authorities are, and from whom missing certificates may be fetched. Bases
// is ignored here.
type Config = truststore.Config

// Source is a set of authorities. It is safe for concurrent use.
type Source struct{ *truststore.Store }

// New checks the configuration and returns the source. It opens nothing: the
// first Load does.
func New(cfg Config) (*Source, error) {
	store, err := truststore.New(cfg, certs.DevID())
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it is
	}
	return &Source{store}, nil
}

// Check implements sources.Source: see truststore.Store.Check. Before the challenge, it
// returns sources.ErrNeedsChallenge.
//
// The machine is listed if [certs.Find] finds a chain by the profile [certs.DevID] for the first
// certificate of its DevID. The other certificates that it has sent may link that one to an anchor.
//
// It is not listed if it has proved no DevID, if there is no chain, or if the certificate has been
// revoked. Check cannot tell before the first successful Load, if the certificate is not for the
// key that was proved, or if Find cannot tell.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if ev.Proof == nil {
		return sources.Verdict{}, sources.ErrNeedsChallenge
	}
	return s.Store.Check(ctx, question(ev.Proof.DevID))
}

// Fetch implements sources.Fetcher: see truststore.Store.Fetch.
func (s *Source) Fetch(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	if ev.Proof == nil {
		return sources.Verdict{}, sources.ErrNeedsChallenge
	}
	return s.Store.Fetch(ctx, question(ev.Proof.DevID))
}

// question returns the question about a machine's DevID; d is nil if the machine has none.
func question(d *sources.DevID) truststore.Question {
	q := truststore.Question{
		Leaf: func(certs.Hand) (*x509.Certificate, string, []certs.Want, error) {
			leaf, why, err := leafOf(d)
			return leaf, why, nil, err
		},
		Attributes: attributes,
	}
	if d != nil && len(d.Chain) > 0 {
		q.Sent = d.Chain[1:]
	}
	return q
}

// leafOf returns the certificate of a DevID, or the reason why there is none.
func leafOf(d *sources.DevID) (leaf *x509.Certificate, why string, err error) {
	if d == nil || len(d.Chain) == 0 {
		return nil, "the machine has proved no DevID: it has none, or its agent does not use it", nil
	}
	leaf, err = attestor.ParseCertificate(d.Chain[0])
	switch {
	case err != nil:
		why = "the DevID certificate that the machine has sent cannot be read: " + err.Error()
		return nil, why, nil //nolint:nilerr // a fact about the machine, and no failure
	case !certs.SameKey(leaf.PublicKey, d.Key):
		return nil, "", errors.New("the key in the DevID certificate is not the DevID's")
	}
	return leaf, "", nil
}

// attributes returns the values of a verified DevID certificate that can become selectors.
func attributes(c *x509.Certificate, _ *certs.Chain) sources.Attributes {
	fingerprint := sha256.Sum256(c.Raw)
	subject, issuer := c.Subject.Names, c.Issuer.Names
	return sources.Attributes{DevID: &sources.DevIDCertificate{
		SubjectCN:           values(subject, commonName, sources.PrefixDevIDSubjectCN),
		SubjectO:            values(subject, organization, sources.PrefixDevIDSubjectO),
		SubjectOU:           values(subject, organizationalUnit, sources.PrefixDevIDSubjectOU),
		SubjectSerialNumber: values(subject, serialNumber, sources.PrefixDevIDSubjectSerialNumber),
		IssuerCN:            values(issuer, commonName, sources.PrefixDevIDIssuerCN),
		IssuerO:             values(issuer, organization, sources.PrefixDevIDIssuerO),
		IssuerOU:            values(issuer, organizationalUnit, sources.PrefixDevIDIssuerOU),
		Serial:              certs.Presentable(sources.PrefixDevIDSerial, certs.Serial(c)),
		Fingerprint:         hex.EncodeToString(fingerprint[:]),
	}}
}

// The attributes of names that become selectors, by the last number of their object
// identifiers, 2.5.4.n (ITU-T X.520).
const (
	commonName         = 3
	serialNumber       = 5
	organization       = 10
	organizationalUnit = 11
)

// values returns all values of an attribute in a name that can become selectors with the prefix.
func values(name []pkix.AttributeTypeAndValue, attribute int, prefix string) []string {
	var all []string
	for _, a := range name {
		if !a.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, attribute}) {
			continue
		}
		text, _ := a.Value.(string)
		if text = certs.Presentable(prefix, text); text != "" {
			all = append(all, text)
		}
	}
	return all
}
