package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// However often an agent is killed, and after whichever command, a later agent has room in
// a TPM without a resource manager. A key of another program stays loaded, even if it has
// the form of an EK.
func TestKilledAfterEachCommand(t *testing.T) {
	full := swtpmtest.Options{}
	blank := swtpmtest.Options{Blank: true}
	for _, tt := range []struct {
		opts swtpmtest.Options
		ek   attestor.KeyType
	}{{full, attestor.RSA2048}, {full, attestor.P384}, {full, attestor.P256}, {blank, attestor.P256}, {blank, attestor.P384}} {
		t.Run(fmt.Sprintf("%s, blank %v", tt.ek, tt.opts.Blank), func(t *testing.T) {
			device := swtpmtest.Start(t, tt.opts).Device
			whole := new(tap)
			first := newTPM(t, Config{Device: device, EK: tt.ek})
			whole.listen(first)
			attest(t, first)
			foreign := loadEKForm(t, device, tt.ek, 1)
			for n := range whole.commands {
				killed := newTPM(t, Config{Device: device, EK: tt.ek})
				(&tap{killed: func(i int) bool { return i >= n }}).listen(killed)
				a, err := killed.Begin(t.Context())
				if err == nil {
					_, err = finish(a)
				}
				if err == nil && whole.commands[n] != tpm2.TPMCCFlushContext { // whose response does not matter
					t.Fatalf("the agent got the response to command %d", n)
				}
			}
			attest(t, newTPM(t, Config{Device: device, EK: tt.ek}))
			wantLoaded(t, device, foreign)
		})
	}
}

// An agent makes room in a TPM that killed agents have filled with EKs or with AKs, even if
// it does not know the EK yet. If other programs have filled the TPM, the error says so, and
// their keys stay.
func TestFullTPM(t *testing.T) {
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384} {
		tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
		fresh := func() *TPM { return newTPM(t, Config{Device: tpm.Device, EK: ek}) }
		for name, last := range map[string]tpm2.TPMCC{
			"EKs": tpm2.TPMCCCreatePrimary, "AKs": tpm2.TPMCCCertifyCreation,
		} {
			t.Run(fmt.Sprintf("%s of an earlier agent, %s", name, ek), func(t *testing.T) {
				for range 5 {
					killed := fresh()
					var seen bool
					tap := new(tap)
					tap.after = func(cc tpm2.TPMCC, _, rsp []byte) []byte {
						seen = seen || cc == last
						return rsp
					}
					tap.instead = func(int, tpm2.TPMCC, []byte) ([]byte, error) {
						if seen {
							return nil, errFault
						}
						return nil, nil
					}
					tap.listen(killed)
					if _, err := killed.Begin(t.Context()); err == nil {
						t.Fatal("the agent was not killed")
					}
				}
				attest(t, fresh())
			})
		}
		t.Run(fmt.Sprintf("of other programs, %s", ek), func(t *testing.T) {
			tpm.Restart()
			foreign := loadEKForm(t, tpm.Device, ek, 3)
			if _, err := fresh().Begin(t.Context()); !errors.Is(err, ErrNotReady) || !errors.Is(err, tpm2.TPMRCObjectMemory) {
				t.Errorf("error %v", err)
			}
			wantLoaded(t, tpm.Device, foreign)
		})
	}
}

// If the TPM has no room for another session, the agent flushes the sessions that
// killed agents have left, and no session of another program.
func TestFullOfSessions(t *testing.T) {
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P384} {
		for own := range 4 {
			t.Run(fmt.Sprintf("%d of an earlier agent, %s", own, ek), func(t *testing.T) {
				tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
				device := newTPM(t, Config{Device: tpm.Device, EK: ek})
				for range own {
					killed := newTPM(t, Config{Device: tpm.Device, EK: ek})
					var n int
					(&tap{
						after: func(cc tpm2.TPMCC, _, rsp []byte) []byte {
							if cc == tpm2.TPMCCPolicySecret {
								n++
							}
							return rsp
						},
						instead: func(int, tpm2.TPMCC, []byte) ([]byte, error) {
							if n > 0 {
								return nil, errFault
							}
							return nil, nil
						},
					}).listen(killed)
					a, err := killed.Begin(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if _, err := finish(a); !errors.Is(err, errFault) {
						t.Fatal(err)
					}
				}
				foreign := fillWithSessions(t, tpm.Device)
				a, err := device.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				_, err = finish(a)
				if own == 0 && !errors.Is(err, tpm2.TPMRCSessionMemory) || own > 0 && err != nil {
					t.Errorf("error %v", err)
				}
				left := slices.DeleteFunc(loaded(t, tpm.Device), func(h tpm2.TPMHandle) bool { return h>>24 != policySession })
				if !slices.Equal(left, foreign) {
					t.Errorf("sessions %#x are left, want %#x", left, foreign)
				}
			})
		}
	}
}

// fillWithSessions begins sessions until the TPM has no room, and returns them.
func fillWithSessions(t *testing.T, device string) []tpm2.TPMHandle {
	t.Helper()
	var all []tpm2.TPMHandle
	direct(t, device, func(c transport.TPM) {
		for {
			rsp, err := tpm2.StartAuthSession{
				TPMKey: tpm2.TPMRHNull, Bind: tpm2.TPMRHNull, SessionType: tpm2.TPMSEPolicy,
				AuthHash: tpm2.TPMAlgSHA256, NonceCaller: tpm2.TPM2BNonce{Buffer: make([]byte, 16)},
				Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
			}.Execute(c)
			if errors.Is(err, tpm2.TPMRCSessionMemory) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, rsp.SessionHandle)
		}
	})
	return all
}

// loadEKForm loads n keys that have the form of the EK but are not the EK, and returns
// their names by handle.
func loadEKForm(t *testing.T, device string, ek attestor.KeyType, n int) map[tpm2.TPMHandle][]byte {
	t.Helper()
	template, err := attestor.TemplateFor(ek)
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[tpm2.TPMHandle][]byte)
	direct(t, device, func(c transport.TPM) {
		for i := range n {
			public := template.Public
			other := bytes.Repeat([]byte{byte(i + 1)}, 32)
			if public.Type == tpm2.TPMAlgRSA {
				public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: other})
			} else {
				public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
					X: tpm2.TPM2BECCParameter{Buffer: other},
				})
			}
			rsp := must(t, c, tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(public)})
			keys[rsp.ObjectHandle] = rsp.Name.Buffer
		}
	})
	return keys
}

// wantLoaded checks that keys, given as names by handle, are still loaded.
func wantLoaded(t *testing.T, device string, keys map[tpm2.TPMHandle][]byte) {
	t.Helper()
	direct(t, device, func(c transport.TPM) {
		for handle, name := range keys {
			rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(c)
			if err != nil || !bytes.Equal(rsp.Name.Buffer, name) {
				t.Errorf("the key %#x of another program has gone: %v", handle, err)
			}
		}
	})
}

// SPIRE kills a refused agent's plugin while it waits for the server. However often the agent
// starts again, it leaves nothing in a TPM without a resource manager, which has room for
// three keys.
func TestRefusedTwentyTimes(t *testing.T) {
	const device, ek = "TPM_TEST_DEVICE", "TPM_TEST_EK"
	if os.Getenv(device) != "" {
		_, err := newTPM(t, Config{Device: os.Getenv(device), EK: attestor.KeyType(os.Getenv(ek))}).Begin(t.Context())
		fmt.Println("waiting for the server:", err)
		select {} // until the test kills this process
	}
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for i := range 20 {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		types := []attestor.KeyType{attestor.RSA2048, attestor.P256}
		cmd.Env = append(os.Environ(), device+"="+tpm.Device, ek+"="+string(types[i%2]))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 200)
		n, _ := out.Read(line)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if got := string(line[:n]); got != "waiting for the server: <nil>\n" {
			t.Fatalf("attestation %d: %s", i, got)
		}
		wantNothingLoaded(t, tpm.Device)
	}
}

// If the TPM is reset while the agent waits for the server, the AK is lost. The attestation
// fails with an error upon which SPIRE tries again, and the next attestation succeeds.
func TestResetWhileTheServerIsAsked(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256} {
		device := newTPM(t, Config{Device: tpm.Device, EK: ek})
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tpm.Restart()
		if _, err := finish(a); !errors.Is(err, ErrNotReady) {
			t.Errorf("error %v", err)
		}
		attest(t, device)
		wantNothingLoaded(t, tpm.Device)
	}
}

// If an attestation is cancelled while a slow TPM makes a key, it ends within a second. The
// key is flushed as soon as it is made.
func TestCancelledOnASlowTPM(t *testing.T) {
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256} { // the AK, then the EK
		tpm := swtpmtest.Start(t, swtpmtest.Options{})
		device := newTPM(t, Config{Device: tpm.Device, EK: ek})
		ctx, cancel := context.WithCancel(t.Context())
		made := make(chan struct{})
		(&tap{after: func(cc tpm2.TPMCC, _, rsp []byte) []byte {
			if cc == tpm2.TPMCCCreatePrimary {
				cancel()
				<-made
			}
			return rsp
		}}).listen(device)
		ended := make(chan struct{})
		err := Do(ctx, func() error {
			defer close(ended)
			_, err := device.Begin(ctx)
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		close(made)
		<-ended
		wantNothingLoaded(t, tpm.Device)
	}
}
