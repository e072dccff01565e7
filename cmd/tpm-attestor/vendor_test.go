package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// A vendor has a web server with the certificate and the CRL of an issuer.
type vendor struct {
	host  string
	files map[string][]byte // by name, in the folder of a script
}

func newVendor(t *testing.T) *vendor {
	t.Helper()
	ca := attestortest.NewCA(t, "Example vendor")
	served := map[string][]byte{"/ca.crt": ca.Certificate.Raw, "/ca.crl": ca.CRL(t, nil)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := served[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content) // the client may have gone
	}))
	t.Cleanup(server.Close)
	tpm := func(number int, issuer string) []byte {
		tpm := attestortest.New(t, attestortest.Options{
			EK: attestor.P256, Number: number, CA: ca,
			Certificate: attestortest.Certificate{Change: func(c *x509.Certificate) {
				c.IssuingCertificateURL = []string{server.URL + issuer}
				c.CRLDistributionPoints = []string{server.URL + "/ca.crl"}
			}},
		})
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tpm.Claim().Certificate})
	}
	key, err := x509.MarshalPKIXPublicKey(attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 3}).Claim().EK)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf(`source "ek_ca" "vendors" {
			ca_path = "/nowhere"
			aia_hosts = [%q]
			crl = "required"
		}`, strings.TrimPrefix(server.URL, "http://"))
	return &vendor{host: strings.TrimPrefix(server.URL, "http://"), files: map[string][]byte{
		"machine.pem": tpm(1, "/ca.crt"),
		"other.pem":   tpm(2, "/gone.crt"),
		"bare.pem":    pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key}),
		"server.conf": []byte(data),
		"vendor.pem":  ca.PEM(),
		"network.conf": []byte(strings.Replace(data, `"/nowhere"`, `"vendor.pem"
			cache_path = "network.db"`, 1)),
		"spiffe.conf": []byte(data + `
			source "http" "inventory" {
				url       = "https://allowlist.example.org/tpm.json"
				auth      = "spiffe"
				server_id = "spiffe://example.org/allowlist"
			}
			allow "both" { all = ["inventory", "vendors"] }`),
		"whole.conf": []byte(`server { trust_domain = "example.org" }
			plugins { NodeAttestor "tpm" { plugin_data { ` + data + `} } }`),
	}}
}

func (v *vendor) write(dir string) error {
	for name, content := range v.files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
