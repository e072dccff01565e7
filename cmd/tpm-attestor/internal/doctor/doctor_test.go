package doctor

import (
	"crypto/x509"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
)

// doctorOf runs doctor and returns what it says.
func doctorOf(t *testing.T, args ...string) (code int, text string) {
	t.Helper()
	var stdout, stderr strings.Builder
	code = clitest.Run(t.Context(), New, append([]string{"doctor"}, args...), cli.Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
	return code, stdout.String() + stderr.String()
}

// with runs commands in a TPM that nothing else uses.
func with(t *testing.T, tpm *swtpmtest.TPM, f func(transport.TPM)) {
	t.Helper()
	c, err := linuxudstpm.Open(tpm.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f(c)
}

// A key that another program has left takes one of the few places in a TPM, and somebody has to
// remove it.
func TestDoctorFindsLeftovers(t *testing.T) {
	t.Parallel()
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	with(t, tpm, func(c transport.TPM) {
		if _, err := (tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate),
		}).Execute(c); err != nil {
			t.Fatal(err)
		}
	})
	code, text := doctorOf(t, "--device", tpm.Device)
	if code != cli.ExitRefused || !strings.Contains(text, "fault    leftovers: 1 keys and 0 sessions are loaded (0x80000000), "+
		"of which an agent left 0") || !strings.Contains(text, "tpm2_flushcontext") ||
		!strings.Contains(text, "ok       attestation") {
		t.Errorf("exit code %d\n%s", code, text)
	}
}

// Certificates that servers have no use for are named, each with what to do instead.
func TestDoctorFindsBadCertificates(t *testing.T) {
	t.Parallel()
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	certificate := func(change func(*x509.Certificate)) []byte {
		return attestortest.New(t, attestortest.Options{
			EK: attestor.P256, CA: attestortest.NewCA(t, "Example vendor"),
			Certificate: attestortest.Certificate{Change: change},
		}).Claim().Certificate
	}
	tpm.WriteNV(0x01C0000A, certificate(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)
	}))
	tpm.WriteNV(0x01C00014, certificate(func(c *x509.Certificate) {
		c.NotBefore = time.Now().AddDate(1, 0, 0)
		c.IssuingCertificateURL = []string{"http://pki.example.org/ca.crt"}
	}))
	tpm.WriteNV(0x01C00012, []byte("nonsense"))
	code, text := doctorOf(t, "--device", tpm.Device)
	for _, want := range []string{
		"fault    certificate: that at NV index 0x01c0000a expired at 20",
		": list the machine by its EK hash: no ek_ca admits it",
		"fault    certificate: it cannot be read: NV index 0x01c00012: ",
		`needs its issuer "CN=Example vendor" among its CAs or by aia_hosts: it is at "http://pki.example.org/ca.crt"`,
		"fault    clock: it says 20",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if code != cli.ExitRefused || t.Failed() {
		t.Errorf("exit code %d\n%s", code, text)
	}
}

// A TPM that is locked out refuses passwords for a while, and whoever waits for it should know.
func TestDoctorFindsLockout(t *testing.T) {
	t.Parallel()
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	with(t, tpm, func(c transport.TPM) {
		// TPM2_DictionaryAttackParameters (part 3, 25.3) with the empty password of the lockout
		// hierarchy: no wrong password is allowed.
		b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTSessions))
		for _, n := range []uint32{
			39, uint32(tpm2.TPMCCDictionaryAttackParameters), uint32(tpm2.TPMRHLockout), 9, uint32(tpm2.TPMRSPW),
		} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		b = append(b, 0, 0, 0, 0, 0)
		for _, n := range []uint32{1, 600, 600} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		if rsp, err := c.Send(b); err != nil || binary.BigEndian.Uint32(rsp[6:]) != 0 {
			t.Fatalf("%x, %v", rsp, err)
		}
		template := tpm2.ECCSRKTemplate
		template.ObjectAttributes.NoDA = false
		key, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")},
			}},
		}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: key.ObjectHandle, Name: key.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
			InPublic:     tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(c) // fails, as it should
		_, _ = tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(c)
	})
	code, text := doctorOf(t, "--device", tpm.Device)
	if code != cli.ExitRefused || !strings.Contains(text, "fault    lockout: the TPM is locked out after 1 of 1 wrong passwords; "+
		"it forgets one every 10m0s: wait, or reset it") {
		t.Errorf("exit code %d\n%s", code, text)
	}
}

// A clock that is wrong makes every certificate and list wrong.
func TestDoctorLooksAtTheClock(t *testing.T) {
	t.Parallel()
	at := func(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	for _, tt := range []struct {
		now, built  int
		certificate int
		want        status
	}{
		{2027, 2026, 2020, statusOK}, {2020, 2026, 2010, statusFault}, {2027, 2026, 2028, statusFault},
	} {
		var d doctor
		d.clock(at(tt.now), at(tt.built), []time.Time{at(tt.certificate)})
		if got := d.report.Checks[0]; got.Status != tt.want || (got.Action == "") != (tt.want == statusOK) {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
	var d doctor
	d.clock(at(2026), time.Time{}, nil) // the time of the source is not known
	if d.report.has(statusFault) {
		t.Errorf("%+v", d.report)
	}
}

// What a source serves is told with its age, and a source that will soon have nothing to serve is a
// fault before it stops.
func TestDoctorLooksAtSources(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	served := sources.Status{Loaded: now, Confirmed: now.Add(-time.Hour), Entries: 3, Serial: 7}
	change := func(f func(*sources.Status)) admission.SourceStatus {
		s := served
		f(&s)
		return admission.SourceStatus{Loads: true, Status: s}
	}
	for name, tt := range map[string]struct {
		status admission.SourceStatus
		want   status
		says   string
	}{
		"well":      {change(func(*sources.Status) {}), statusOK, "3 entries, serial 7, confirmed 1h0m0s ago"},
		"until":     {change(func(s *sources.Status) { s.Stale = now.Add(time.Hour) }), statusOK, "serves until 2026-01-02T13:00:00Z"},
		"stale":     {change(func(s *sources.Status) { s.Stale = now.Add(-time.Hour) }), statusFault, "stale since 2026-01-02T11:00:00Z"},
		"expired":   {change(func(s *sources.Status) { s.Expires = now.Add(-1) }), statusFault, "expired at"},
		"soon":      {change(func(s *sources.Status) { s.Expires = now.Add(time.Minute) }), statusFault, "expires at"},
		"future":    {change(func(s *sources.Status) { s.Confirmed = now.Add(time.Hour) }), statusFault, "in the future"},
		"nothing":   {admission.SourceStatus{Loads: true}, statusFault, "nothing to serve"},
		"no load":   {admission.SourceStatus{}, statusOK, "asked at each attestation"},
		"stuck":     {admission.SourceStatus{Loads: true, Stuck: 1, Err: finding.ErrHangs}, statusUnknown, "no answer"},
		"not wrong": {admission.SourceStatus{Loads: true, Err: finding.ErrHangs}, statusUnknown, "no answer"},
	} {
		var d doctor
		d.source("x", tt.status, now)
		if got := d.report.Checks[0]; got.Status != tt.want || !strings.Contains(got.Message, tt.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	var d doctor
	d.source("x", change(func(s *sources.Status) { s.Warnings = []string{"a warning"} }), now)
	if !slices.Contains(d.report.Checks, diagnosis{"x", statusNote, "a warning", ""}) {
		t.Errorf("%+v", d.report)
	}
}

// A disk that is full is found before a cache cannot be written.
func TestDoctorLooksAtTheDisk(t *testing.T) {
	t.Parallel()
	free, err := spaceIn(t.TempDir())
	if err != nil || !free.known || free.bytes == 0 || free.files == 0 {
		t.Errorf("%+v, %v", free, err)
	}
	if _, err := spaceIn("/nowhere"); err == nil {
		t.Error("there is room in nowhere")
	}
	for _, tt := range []struct {
		free space
		want status
	}{
		{space{true, 1 << 40, 5}, statusOK}, {space{true, 1 << 20, 5}, statusFault}, {space{true, 1 << 40, 0}, statusFault},
	} {
		var d doctor
		d.disk("x", "/var/cache.db", tt.free, 0)
		if got := d.report.Checks[0]; got.Status != tt.want {
			t.Errorf("%+v: %+v", tt.free, got)
		}
	}
	var d doctor
	d.disk("x", "/var/cache.db", space{true, 1 << 30, 5}, 1<<30)
	d.disk("x", "/var/cache.db", space{}, 0)
	if len(d.report.Checks) != 1 || d.report.Checks[0].Status != statusFault {
		t.Errorf("%+v", d.report)
	}
}
