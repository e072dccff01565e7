package tpm

import (
	"net"
	"testing"

	legacy "github.com/google/go-tpm/legacy/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The bytes that SPIRE's tpm_devid takes are those that go-tpm's older API returns for a key. Such
// files, for an RSA key below the RSA SRK and an ECC key below the ECC SRK, are proved unchanged.
func TestFilesOfTPMDevID(t *testing.T) {
	const attributes = legacy.FlagSign | legacy.FlagFixedTPM | legacy.FlagFixedParent |
		legacy.FlagSensitiveDataOrigin | legacy.FlagUserWithAuth
	const storage = legacy.FlagStorageDefault | legacy.FlagNoDA
	aes := &legacy.SymScheme{Alg: legacy.AlgAES, KeyBits: 128, Mode: legacy.AlgCFB}
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for name, test := range map[string]struct{ srk, key legacy.Public }{
		"RSA": {
			legacy.Public{
				Type: legacy.AlgRSA, NameAlg: legacy.AlgSHA256, Attributes: storage,
				RSAParameters: &legacy.RSAParams{Symmetric: aes, KeyBits: 2048, ModulusRaw: []byte{}},
			},
			legacy.Public{
				Type: legacy.AlgRSA, NameAlg: legacy.AlgSHA256, Attributes: attributes,
				RSAParameters: &legacy.RSAParams{
					Sign: &legacy.SigScheme{Alg: legacy.AlgRSASSA, Hash: legacy.AlgSHA256}, KeyBits: 2048,
				},
			},
		},
		"ECC": {
			legacy.Public{
				Type: legacy.AlgECC, NameAlg: legacy.AlgSHA256, Attributes: storage,
				ECCParameters: &legacy.ECCParams{
					Symmetric: aes, CurveID: legacy.CurveNISTP256, Point: legacy.ECPoint{XRaw: []byte{}, YRaw: []byte{}},
				},
			},
			legacy.Public{
				Type: legacy.AlgECC, NameAlg: legacy.AlgSHA256, Attributes: attributes,
				ECCParameters: &legacy.ECCParams{
					Sign:    &legacy.SigScheme{Alg: legacy.AlgECDSA, Hash: legacy.AlgSHA256},
					CurveID: legacy.CurveNISTP256, Point: legacy.ECPoint{XRaw: make([]byte, 32), YRaw: make([]byte, 32)},
				},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			private, public := provisionLegacy(t, tpm.Socket, test.srk, test.key)
			p := provisionOn(t, tpm.Device)
			device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: &DevIDConfig{
				CertPath: p.certify(public), Password: "devid password",
				PrivPath: p.write("devid.priv", private), PubPath: p.write("devid.pub", public),
			}})
			if _, err := proved(device, t); err != nil {
				t.Error(err)
			}
			wantNothingLoaded(t, tpm.Device)
		})
	}
}

func provisionLegacy(t *testing.T, socket string, srk, key legacy.Public) (private, public []byte) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	none := legacy.PCRSelection{}
	parent, _, _, _, _, _, err := legacy.CreatePrimaryEx(c, legacy.HandleOwner, none, "", "srk password", srk)
	if err != nil {
		t.Fatal(err)
	}
	private, public, _, _, _, err = legacy.CreateKey(c, parent, none, "srk password", "devid password", key)
	if err != nil {
		t.Fatal(err)
	}
	if err := legacy.FlushContext(c, parent); err != nil {
		t.Fatal(err)
	}
	return private, public
}
