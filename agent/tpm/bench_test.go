package tpm

import (
	"crypto/rand"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// BenchmarkAttestation is the agent's half of one attestation with a P-256 AK, from
// opening the TPM to closing it. The challenge is made while the timer is stopped.
// Compare it with BenchmarkBareCommands in the same run.
func BenchmarkAttestation(b *testing.B) {
	forEachEK(b, func(b *testing.B, device *TPM) {
		for range b.N {
			a, err := device.Begin(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			credential, secret := challenge(b, a.Claim.EKPublic, a.Claim.AK.Public)
			b.StartTimer()
			if _, err := a.Activate(b.Context(), &attestor.Activation{Credential: credential, Secret: secret}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkBareCommands runs only the mandatory commands of an attestation: it reads or
// makes the EK, makes the AK and certifies its creation, activates the credential under
// the EK's policy, and flushes the keys.
func BenchmarkBareCommands(b *testing.B) {
	forEachEK(b, func(b *testing.B, device *TPM) {
		for range b.N {
			bareCommands(b, device)
		}
	})
}

func forEachEK(b *testing.B, f func(*testing.B, *TPM)) {
	tpm := swtpmtest.Start(b, swtpmtest.Options{})
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384} {
		b.Run(string(ek), func(b *testing.B) {
			device := newTPM(b, Config{Device: tpm.Device, EK: ek})
			attest(b, device) // takes the inventory
			b.ResetTimer()
			f(b, device)
		})
	}
}

// challenge returns a credential for an EK and an AK.
func challenge(b *testing.B, ek, ak []byte) (credential, secret []byte) {
	b.Helper()
	ekPublic, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek)
	if err != nil {
		b.Fatal(err)
	}
	akPublic, err := tpm2.Unmarshal[tpm2.TPMTPublic](ak)
	if err != nil {
		b.Fatal(err)
	}
	name, err := tpm2.ObjectName(akPublic)
	if err != nil {
		b.Fatal(err)
	}
	to, err := tpm2.ImportEncapsulationKey(ekPublic)
	if err != nil {
		b.Fatal(err)
	}
	credential, secret, err = tpm2.CreateCredential(rand.Reader, to, name.Buffer, make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	return credential, secret
}

// bareCommands runs the mandatory commands on one connection, without any check.
func bareCommands(b *testing.B, device *TPM) {
	ch, err := openChannel(b.Context(), device.config.Device)
	if err != nil {
		b.Fatal(err)
	}
	defer ch.Close()
	c := bare{b, ch}
	inv := device.known
	ek := key{handle: inv.ek.handle}
	if inv.ek.persistent {
		rsp := must(b, c, tpm2.ReadPublic{ObjectHandle: ek.handle})
		ek.name, ek.public = rsp.Name, rsp.OutPublic.Bytes()
	} else {
		rsp := must(b, c, tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(inv.template.Public),
		})
		ek.handle, ek.name, ek.public = rsp.ObjectHandle, rsp.Name, rsp.OutPublic.Bytes()
	}
	template, err := akTemplate(attestor.P256, akForm{make([]byte, 32), akMark()})
	if err != nil {
		b.Fatal(err)
	}
	ak := must(b, c, tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)})
	must(b, c, tpm2.CertifyCreation{
		SignHandle:     tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle:   tpm2.NamedHandle{Handle: ak.ObjectHandle, Name: ak.Name},
		CreationHash:   ak.CreationHash,
		CreationTicket: ak.CreationTicket,
	})
	b.StopTimer()
	credential, secret := challenge(b, ek.public, ak.OutPublic.Bytes())
	b.StartTimer()
	must(b, c, tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle:      ek.authorized(device.ekSession(&endorsementKey{template: inv.template})),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	})
	must(b, c, tpm2.FlushContext{FlushHandle: ak.ObjectHandle})
	if !inv.ek.persistent {
		must(b, c, tpm2.FlushContext{FlushHandle: ek.handle})
	}
}

// bare is a connection that only sends and receives.
type bare struct {
	tb      testing.TB
	channel channel
}

func (c bare) Send(command []byte) ([]byte, error) {
	return c.channel.roundTrip(c.tb.Context(), command)
}

// BenchmarkDevID is the agent's half of one attestation with a DevID from files, and the server's.
// Compare it with the same without the DevID.
func BenchmarkDevID(b *testing.B) {
	tpm := swtpmtest.Start(b, swtpmtest.Options{Blank: true})
	p := provisionOn(b, tpm.Device)
	rsa, ecc := srkTemplates(tpm2.TPMAlgRSA)[0], srkTemplates(tpm2.TPMAlgECC)[0]
	for name, devid := range map[string]*DevIDConfig{
		"none":    nil,
		"rsa2048": p.files(rsa, signingKey(attestor.RSA2048, tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256), ""),
		"p256":    p.files(ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), ""),
		"p384":    p.files(ecc, signingKey(attestor.P384, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA384), ""),
	} {
		b.Run(name, func(b *testing.B) {
			device := newTPM(b, Config{Device: tpm.Device, EK: attestor.P256, DevID: devid})
			for b.Loop() {
				a, err := device.Begin(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if _, _, err := answer(a, attestor.Ask{DevID: devid != nil}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
