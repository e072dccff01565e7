package ekca_test

import (
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// Stops a refusal from naming the certificate that is there instead of the one that is
// missing, and from leaving out why nobody was asked for that.
func TestRefusalNamesWhatIsMissing(t *testing.T) {
	web, elsewhere := newSite(t), newSite(t)
	root, other := newRoot(t, "Root"), newRoot(t, "Other")
	middle := root.sub(t, "Middle")
	low := middle.sub(t, "Low", issuersAt(elsewhere.url("/middle")))
	fetched := middle.sub(t, "Fetched")
	renamed := newRoot(t, "Root")
	for name, c := range map[string]struct {
		cas  []*x509.Certificate
		ek   *x509.Certificate
		sent []*x509.Certificate
		want []string
	}{
		"the issuer": {
			certsOf(other), low.ek(t), nil, []string{`EK certificate, whose issuer is "CN=Low,O=Test"`},
		},
		"the root": {
			certsOf(other), low.ek(t), certsOf(low, middle),
			[]string{`the certificate of "CN=Middle,O=Test", the topmost`, `its issuer is "CN=Root,O=Test"`},
		},
		"between": {
			certsOf(other, root), low.ek(t), certsOf(low),
			[]string{`the certificate of "CN=Low,O=Test", the topmost`, `its issuer is "CN=Middle,O=Test"`, elsewhere.url("/middle"), "not on an allowed host"},
		},
		"fetched": {
			certsOf(other), fetched.ek(t, issuersAt(web.put("/fetched", fetched.cert.Raw))), nil,
			[]string{`the certificate of "CN=Fetched,O=Test", the topmost`, `its issuer is "CN=Middle,O=Test"`},
		},
		"another key": {
			certsOf(renamed), root.ek(t), nil, []string{"a configured CA has that name, but another key"},
		},
		"a directory": {
			certsOf(other), root.ek(t, issuersAt("ldap://x.test/cn=root")), nil,
			[]string{`"ldap://x.test/cn=root"`, "neither http:// nor https://"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := load(t, ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, c.cas...), AIAHosts: []string{web.host()}}})
			v := wantOutcome(t, notListed, "no configured CA has issued the ", src, c.ek, c.sent...)
			for _, want := range c.want {
				wantText(t, v.Reason, want)
			}
		})
	}
	v := wantOutcome(t, notListed, "aia_hosts is empty", trusting(t, other), root.ek(t, issuersAt(web.url("/root"))))
	wantText(t, v.Reason, web.url("/root"))
}

// Who reads in a refusal why nobody was asked, and does what the documentation says about
// that reason, has the machine admitted: each remedy is tried here.
func TestRemediesOfRefusals(t *testing.T) {
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	web, mirror := newSite(t), newSite(t)
	private := "pki.localhost.test" // a name that the mirror answers for
	ek := low.ek(t, issuersAt(web.put("/low", low.cert.Raw)))
	mirror.put("/"+web.host()+"/low", low.cert.Raw)
	named := low.ek(t, issuersAt("http://"+private+"/low"))
	mirror.put("/"+private+"/low", low.cert.Raw)
	cas := certstest.File(t, root.cert)
	for name, c := range map[string]struct {
		broken ekca.Config
		ek     *x509.Certificate
		want   outcome
		why    string
		mended ekca.Config
	}{
		"nothing is fetched": {
			ekca.Config{Config: truststore.Config{CAPath: cas}},
			ek, notListed, "aia_hosts is empty",
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{web.host()}}},
		},
		"another host": {
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{"pki.example.org"}}},
			ek, notListed, "it is not on an allowed host",
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{"pki.example.org", web.host()}}},
		},
		"by the CA file": {
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{"pki.example.org"}}},
			ek, notListed, "no configured CA has issued",
			ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, root.cert, low.cert)}},
		},
		"a mirror": {
			ekca.Config{Config: truststore.Config{CAPath: cas}},
			named, notListed, "aia_hosts is empty",
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{private}, MirrorURL: mirror.server.URL}},
		},
		"a mirror that has it not": {
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{private}, MirrorURL: web.server.URL}},
			named, cannotTell, "404",
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{private}, MirrorURL: mirror.server.URL + "/"}},
		},
		"the root": {
			ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, newRoot(t, "Other").cert), AIAHosts: []string{web.host()}}},
			ek, notListed,
			`its issuer is "CN=Root,O=Test"`,
			ekca.Config{Config: truststore.Config{CAPath: cas, AIAHosts: []string{web.host()}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			wantOutcome(t, c.want, c.why, load(t, c.broken), c.ek)
			wantOutcome(t, listed, "", load(t, c.mended), c.ek)
		})
	}
}

// A machine whose certificate becomes valid in two seconds is told to try again, and
// not to give up; one that no CA vouches for is refused all the same.
func TestValidInAMoment(t *testing.T) {
	root, other := newRoot(t, "Root"), newRoot(t, "Other")
	in := func(d time.Duration) edit {
		return func(c *x509.Certificate) { c.NotBefore = certstest.Today().Add(d) }
	}
	late := root.sub(t, "Late", in(time.Minute))
	src := trusting(t, root)
	wantOutcome(t, cannotTell, "in 2s", src, root.ek(t, in(2*time.Second)))
	wantOutcome(t, cannotTell, "in 5m0s", src, root.ek(t, in(5*time.Minute)))
	wantOutcome(t, notListed, "is not valid before", src, root.ek(t, in(5*time.Minute+time.Second)))
	wantOutcome(t, notListed, "no configured CA", src, other.ek(t, in(2*time.Second)))
	wantOutcome(t, notListed, "is a CA certificate", src, root.sub(t, "CA", in(2*time.Second)).cert)
	wantOutcome(t, cannotTell, `the CA "CN=Late,O=Test" is not valid before`, src, late.ek(t), late.cert)
}

// What expires is said a month before, while nobody has changed a file: for a CA as a
// warning, for an EK certificate beside its verdict.
func TestExpiryIsSaidBefore(t *testing.T) {
	until := func(d time.Duration) edit { return func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(d) } }
	ca := newRoot(t, "Root", until(100*day))
	now := newClock()
	synctest.Test(t, func(t *testing.T) {
		src := load(t, ekca.Config{Config: truststore.Config{CAPath: certstest.File(t, ca.cert, newRoot(t, "Lasting").cert), Now: now.read}})
		ek := ca.ek(t, until(90*day))
		if w := src.Status().Warnings; len(w) != 0 {
			t.Errorf("warnings: %q", w)
		}
		now.pass(69 * day)
		wantListed(t, src, ek)
		now.pass(2 * day)
		wantWarning(t, src.Status().Warnings, `certificate 1 (subject "CN=Root,O=Test") expires on 2026-09-09T12:00:00Z`)
		if w := src.Status().Warnings; len(w) != 1 {
			t.Errorf("warnings: %q", w)
		}
		wantText(t, check(t, src, ek).Reason, "expires on 2026-08-30T12:00:00Z")
		now.pass(40 * day)
		wantWarning(t, src.Status().Warnings, `(subject "CN=Root,O=Test") has expired on 2026-09-09`)
	})
}
