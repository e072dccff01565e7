package ekca_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// realEK is a real EK certificate with the names of the CA files above it, the
// issuer first, and what its selectors are.
type realEK struct {
	file string
	cas  []string
	want sources.EKCertificate
}

func realEKs() []realEK {
	return []realEK{
		{
			"infineon-slb9670-rsa2048-mfrca035.der",
			[]string{"Infineon-OPTIGA-TM-RSA-Manufacturing-CA-035", "Infineon-OPTIGA-TM-RSA-Root-CA"},
			sources.EKCertificate{
				IssuerCN: "Infineon OPTIGA(TM) RSA Manufacturing CA 035", Serial: "2fcc2d1e",
				Manufacturer: "id:49465800", Model: "SLB 9670 TPM2.0", Version: "id:073f",
			},
		},
		{
			"infineon-slb9670-eccp256-mfrca035.der",
			[]string{"Infineon-OPTIGA-TM-ECC-Manufacturing-CA-035", "Infineon-OPTIGA-TM-ECC-Root-CA"},
			sources.EKCertificate{
				IssuerCN: "Infineon OPTIGA(TM) ECC Manufacturing CA 035", Serial: "71848989",
				Manufacturer: "id:49465800", Model: "SLB 9670 TPM2.0", Version: "id:073f",
			},
		},
		{
			"stm-st33htphahb4-rsa2048-padded-ff.bin",
			[]string{"STM-TPM-EK-Intermediate-CA-05", "STM-TPM-EK-Root-CA", "GlobalSign-Trusted-Platform"},
			sources.EKCertificate{
				IssuerCN: "STM TPM EK Intermediate CA 05", Serial: "4cbd0fe61ee762edb28d50b268fc3586ff3d5e82",
				Manufacturer: "id:53544D20", Model: "ST33HTPHAHB4", Version: "id:00490004",
			},
		},
		{
			"nuvoton-npct6xx-rsa2048-root2110.der",
			[]string{"Nuvoton-TPM-Root-CA-2110"},
			sources.EKCertificate{
				IssuerCN: "Nuvoton TPM Root CA 2110", Serial: "16c04fb11e8a114bb31e",
				Manufacturer: "id:4E544300", Model: "NPCT6xx", Version: "id:13",
			},
		},
		{
			"intel-ptt-spt-rsa2048-ekop.der",
			[]string{"intel-TPM-EK-intermediate-for-SPTH-EPID-PROD", "intel-TPM-EK-root-cert-signing"},
			sources.EKCertificate{
				IssuerCN: "www.intel.com", Serial: "7d3f34f8",
				Manufacturer: "id:494E5443", Model: "SPT", Version: "id:00020000",
			},
		},
		{
			"swtpm-rsa2048.der",
			[]string{"swtpm-localca-7", "swtpm-localca-rootca"},
			sources.EKCertificate{
				IssuerCN: "swtpm-localca", Serial: "4e1",
				Manufacturer: "id:00001014", Model: "swtpm", Version: "id:20240125",
			},
		},
		{
			"swtpm-eccp384.der",
			[]string{"swtpm-localca-7", "swtpm-localca-rootca"},
			sources.EKCertificate{
				IssuerCN: "swtpm-localca", Serial: "4e3",
				Manufacturer: "id:00001014", Model: "swtpm", Version: "id:20240125",
			},
		},
	}
}

func readEK(tb testing.TB, path string) *x509.Certificate {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := attestor.ParseEKCertificate(data)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func readCA(tb testing.TB, path string) *x509.Certificate {
	tb.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	cert, err := x509.ParseCertificate(data)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// caNamed returns the path of the CA file whose name begins with prefix.
func caNamed(tb testing.TB, dir, prefix string) string {
	tb.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "ca", prefix+"*"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no CA file %q: %v", prefix, err)
	}
	slices.Sort(paths)
	return paths[0]
}

// Every real EK certificate with every single CA: its own CAs vouch for it, with
// what is missing between sent by the machine, and no others do, whatever is
// sent.
func TestRealEKCertificatesWithEachCA(t *testing.T) {
	dir := attestortest.FieldCertificates(t)
	paths, err := filepath.Glob(filepath.Join(dir, "ca", "*.pem"))
	if err != nil || len(paths) != 15 {
		t.Fatalf("%d CA files: %v", len(paths), err)
	}
	all := make([]*x509.Certificate, len(paths))
	for i, path := range paths {
		all[i] = readCA(t, path)
	}
	for _, ek := range realEKs() {
		t.Run(ek.file, func(t *testing.T) {
			cert := readEK(t, filepath.Join(dir, ek.file))
			own := make([]string, len(ek.cas))
			for i, name := range ek.cas {
				own[i] = caNamed(t, dir, name)
			}
			for _, path := range paths {
				src := load(t, ekca.Config{Config: truststore.Config{CAPath: path}})
				if w := src.Status().Warnings; len(w) > 0 {
					t.Errorf("warnings: %q", w)
				}
				level := slices.Index(own, path)
				if got := check(t, src, cert).Listed; got != (level == 0) {
					t.Errorf("%s: listed is %v", path, got)
				}
				if got := check(t, src, cert, all...).Listed; got != (level >= 0) {
					t.Errorf("%s, with all CAs sent: listed is %v", path, got)
				}
			}
		})
	}
}

// With a folder of all CAs and a bundle for each, a certificate's selectors name
// all above it and say what the certificate says.
func TestRealEKCertificatesWithAllCAs(t *testing.T) {
	dir := attestortest.FieldCertificates(t)
	folder := load(t, ekca.Config{Config: truststore.Config{CAPath: filepath.Join(dir, "ca")}})
	if got := folder.Status(); got.Entries != 15 || len(got.Warnings) != 0 {
		t.Errorf("Status = %+v", got)
	}
	bundles := make(map[string]string)
	for _, ek := range realEKs() {
		for _, name := range ek.cas {
			bundles[bundleOf(name)] = caNamed(t, dir, name)
		}
	}
	src := load(t, ekca.Config{Config: truststore.Config{Bundles: bundles}})
	for _, ek := range realEKs() {
		t.Run(ek.file, func(t *testing.T) {
			cert := readEK(t, filepath.Join(dir, ek.file))
			got := wantListed(t, src, cert)
			var names []string
			for _, name := range ek.cas {
				names = append(names, bundleOf(name))
			}
			slices.Sort(names)
			if diff := cmp.Diff(names, got.CAs); diff != "" {
				t.Error(diff)
			}
			if hash := got.Certificate.IssuerKeyHash; len(hash) != 64 {
				t.Errorf("issuer's key hash %q", hash)
			}
			ek.want.IssuerKeyHash = got.Certificate.IssuerKeyHash
			if diff := cmp.Diff(&ek.want, got.Certificate); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(&ek.want, wantListed(t, folder, cert).Certificate); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func bundleOf(name string) string { return strings.Trim(strings.ToLower(name), "-") }
