package certs_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

// everything looks up what Find wants with Request.Everything, and returns the URLs in the order
// in which they are wanted, and what has become of them.
func everything(tb testing.TB, r certs.Request, have map[string][]byte) (urls []string, named []certs.Named) {
	tb.Helper()
	hand := &shelf{bodies: map[string][]byte{}}
	r.Everything, r.Hand = true, hand
	for range 20 {
		result, err := certs.Find(r)
		if result.Chain != nil || (err == nil) != (len(result.Wants) > 0) || err != nil && !errors.Is(err, certs.ErrUndecided) {
			tb.Fatalf("%+v, %v", result, err)
		}
		if err != nil {
			return urls, result.Named
		}
		for _, w := range result.Wants {
			urls = append(urls, w.URL)
			hand.bodies[w.URL] = have[w.URL]
		}
	}
	tb.Fatal("it wants more and more")
	return nil, nil
}

// told returns a line for each certificate with what was found of what it names.
func told(all []certs.Named) (lines []string) {
	for _, n := range all {
		words := []string{string(n.Kind) + " of " + n.By.Subject.CommonName}
		if !n.Had {
			words[0] += " missing"
		}
		for _, f := range n.Faults {
			words = append(words, f.Error())
		}
		lines = append(lines, strings.Join(words, ": "))
	}
	return lines
}

// A mirror has everything that any server may ask for: all URLs, even those of a configured CA, and
// even if another URL has led to the issuer; and CRLs up to a root that nobody has configured. A
// URL of each kind that fails is reported with the certificate that names it.
func TestEverything(t *testing.T) {
	root := newCA(t, "Root", nil, "/above", "/none.crl")
	middle := newCA(t, "Middle", root, "/root", "/root.crl")
	low := newCA(t, "Low", middle, "/middle", "/elsewhere", "/middle.crl")
	ek := low.ek(t, "/low", "ftp://x", "/gone", "/low.crl")
	have := map[string][]byte{
		"/low": low.cert.Raw, "/middle": middle.cert.Raw, "/elsewhere": newCA(t, "Other", nil).cert.Raw, "/root": root.cert.Raw,
		"/low.crl": low.crl(t), "/middle.crl": root.crl(t), "/root.crl": root.crl(t),
	}
	r := certs.Request{Leaf: ek, Profile: certs.EK(), CRLs: certs.CRLIfAvailable, Now: now()}
	for name, configured := range map[string]map[string]*ca{"nobody": nil, "the leaf's issuer": {"": low}, "bundles": {"a": low, "b": root}} {
		r.Anchors = anchors(t, configured)
		urls, named := everything(t, r, have)
		slices.Sort(urls)
		want := []string{"/elsewhere", "/gone", "/low", "/low.crl", "/middle", "/middle.crl", "/root", "/root.crl"}
		if d := cmp.Diff(want, urls); d != "" {
			t.Errorf("with %s configured: %s", name, d)
		}
		if d := cmp.Diff([]string{
			`issuer of : "ftp://x" (it is not allowed): it cannot be had`,
			`issuer of Low: it exists, but did not sign the certificate that names it`,
			`issuer of Middle`,
			`crl of `,
			`crl of Low missing: it is from another issuer`,
			`crl of Middle`,
		}, told(named)); d != "" {
			t.Errorf("with %s configured: %s", name, d)
		}
	}
	r.Anchors, r.CRLs = anchors(t, nil), certs.CRLOff
	if urls, named := everything(t, r, have); len(urls) != 5 || len(named) != 3 {
		t.Errorf("without CRLs: %q, %q", urls, told(named))
	}
}

// Stops Request.Everything from being a way in, and without it a self-signed certificate from
// being an anchor because a machine has sent it or names a URL where it is.
func TestNoStrangerIsAnAnchor(t *testing.T) {
	stranger := newCA(t, "Stranger", nil)
	low := newCA(t, "Low", stranger, "/stranger", "/stranger.crl")
	bodies := map[string][]byte{
		"/stranger": stranger.cert.Raw, "/low": low.cert.Raw, "/stranger.crl": stranger.crl(t), "/low.crl": low.crl(t),
	}
	self := &ca{cert: &x509.Certificate{Subject: pkix.Name{CommonName: "Self"}}, key: stranger.key}
	for name, leaf := range map[string]*x509.Certificate{
		"by the stranger": stranger.ek(t, "/stranger", "/stranger.crl"), "by a CA of his": low.ek(t, "/low", "/low.crl"),
		"by itself": self.ek(t),
	} {
		r := certs.Request{
			Leaf: leaf, Sent: [][]byte{stranger.cert.Raw, low.cert.Raw}, Profile: certs.EK(), CRLs: certs.CRLIfAvailable,
			Anchors: anchors(t, map[string]*ca{"": newCA(t, "Root", nil)}), Now: now(), Hand: &shelf{bodies: bodies},
		}
		if result, err := certs.Find(r); err != nil || result.Chain != nil || len(result.Wants) > 0 {
			t.Errorf("%s: %+v, %v", name, result, err)
		}
		// Even a CA that is configured gives no chain if everything is asked for.
		r.Anchors, r.Everything = anchors(t, map[string]*ca{"": stranger}), true
		if result, err := certs.Find(r); !errors.Is(err, certs.ErrUndecided) || result.Chain != nil {
			t.Errorf("%s, with everything: %+v, %v", name, result, err)
		}
	}
}
