package tpm

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// An operator learns what fills a TPM, and how much of it an agent left, without anything being
// loaded or removed.
func TestHealthOfWhatIsLoaded(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	h, err := device.Health(t.Context())
	if err != nil || h.LockedOut || len(h.Keys)+len(h.Sessions)+h.Own > 0 || h.Room == 0 || h.MostTries == 0 {
		t.Fatalf("a TPM that nobody uses: %+v, %v", h, err)
	}
	loadEKForm(t, tpm.Device, attestor.P256, 1)
	killed := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	certified := false
	(&tap{
		after: func(cc tpm2.TPMCC, _, rsp []byte) []byte {
			certified = certified || cc == tpm2.TPMCCCertifyCreation
			return rsp
		},
		instead: func(int, tpm2.TPMCC, []byte) ([]byte, error) {
			if certified {
				return nil, errFault
			}
			return nil, nil
		},
	}).listen(killed)
	if _, err := killed.Begin(t.Context()); err == nil {
		t.Fatal("the agent was not killed")
	}
	direct(t, tpm.Device, func(c transport.TPM) {
		must(t, c, tpm2.StartAuthSession{
			TPMKey: tpm2.TPMRHNull, Bind: tpm2.TPMRHNull, SessionType: tpm2.TPMSEPolicy,
			AuthHash: tpm2.TPMAlgSHA256, NonceCaller: tpm2.TPM2BNonce{Buffer: make([]byte, 16)},
			Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
		})
	})
	for range 2 {
		h, err = device.Health(t.Context())
		if err != nil || len(h.Keys) != 2 || h.Own != 1 || len(h.Sessions) != 1 {
			t.Errorf("%+v, %v", h, err)
		}
	}
}

// A TPM that is locked out says so, with how long it lasts.
func TestHealthOfALockedTPM(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	const index tpm2.TPMHandle = 0x01500001
	defineNV(t, tpm.Device, nvContent{index, []byte("x"), tpm2.TPMANV{OwnerWrite: true, AuthRead: true}, "right"})
	direct(t, tpm.Device, func(c transport.TPM) {
		setMostTries(t, c, 1, 600)
		name := must(t, c, tpm2.NVReadPublic{NVIndex: index}).NVName
		handle := tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth([]byte("wrong"))}
		_, _ = tpm2.NVRead{
			AuthHandle: handle, NVIndex: tpm2.NamedHandle{Handle: index, Name: name}, Size: 1,
		}.Execute(c) // fails, as it should
	})
	h, err := newTPM(t, Config{Device: tpm.Device}).Health(t.Context())
	if err != nil || !h.LockedOut || h.FailedTries != 1 || h.MostTries != 1 || h.Recovery != 10*time.Minute {
		t.Errorf("%+v, %v", h, err)
	}
}

// setMostTries runs TPM2_DictionaryAttackParameters (part 3, 25.3) with the empty lockout password.
func setMostTries(t *testing.T, c transport.TPM, tries, recovery uint32) {
	t.Helper()
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
	b = binary.BigEndian.AppendUint32(b, 39)
	b = binary.BigEndian.AppendUint32(b, uint32(tpm2.TPMCCDictionaryAttackParameters))
	b = binary.BigEndian.AppendUint32(b, uint32(tpm2.TPMRHLockout))
	b = binary.BigEndian.AppendUint32(b, 9)
	b = binary.BigEndian.AppendUint32(b, uint32(tpm2.TPMRSPW))
	b = append(b, 0, 0, 0, 0, 0)
	for _, n := range []uint32{tries, recovery, 600} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	rsp, err := c.Send(b)
	if err != nil || binary.BigEndian.Uint32(rsp[6:]) != 0 {
		t.Fatalf("%x, %v", rsp, err)
	}
}

// A TPM whose answer has nothing about its lockout is not called healthy.
func TestHealthWithoutProperties(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device})
	(&tap{after: func(cc tpm2.TPMCC, _, rsp []byte) []byte {
		if cc == tpm2.TPMCCGetCapability { // no property
			rsp = append(rsp[:10:10], 0, 0, 0, 0, 6, 0, 0, 0, 0)
			binary.BigEndian.PutUint32(rsp[2:], uint32(len(rsp)))
		}
		return rsp
	}}).listen(device)
	if h, err := device.Health(t.Context()); err == nil {
		t.Errorf("%+v", h)
	}
}
