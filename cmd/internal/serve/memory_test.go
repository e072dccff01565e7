package serve_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

const (
	hostileAgents = 1024
	// maxGrowth is how much hostile agents may raise the peak of the server plugin's
	// memory, in bytes. Event logs and what is read from them take 48 MiB, and answers that
	// arrive 8 MiB. Until Go's collector has run, which takes long on a machine that is
	// busy, there is as much garbage.
	maxGrowth, maxGrowthOfLogs = 64 << 20, 128 << 20
)

// If the kernel kills the server plugin for its memory, SPIRE does not restart it, and no
// machine of the fleet attests any more. So whatever a thousand agents that have proved nothing
// send or hold open, or the machines of a list measure, the plugin's memory grows by no more than a
// bound, and a listed machine still attests.
func TestMemoryOfHostileAgents(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the built binary")
	}
	for _, tt := range []struct {
		name   string
		most   int // bytes
		attack func(*testing.T, *victim)
	}{
		// Parsed, certificates with many short key usages need much more memory than
		// they have bytes; so do those with fewer long ones.
		{"strangers with crafted chains", maxGrowth, func(t *testing.T, v *victim) { v.holdChallenges(t, v.stranger(t, 2520, 1)) }},
		{"strangers with fat chains", maxGrowth, func(t *testing.T, v *victim) { v.holdChallenges(t, v.stranger(t, 400, 5)) }},
		{"a listed EK with crafted chains", maxGrowth, func(t *testing.T, v *victim) { v.holdChallenges(t, v.copy(t, 2520, 1)) }},
		{"a listed EK with fat chains", maxGrowth, func(t *testing.T, v *victim) { v.holdChallenges(t, v.copy(t, 400, 5)) }},
		{"responses of 3 MiB", maxGrowth, func(t *testing.T, v *victim) { v.respond(t, 3<<20) }},
		{"responses of the largest size", maxGrowth, func(t *testing.T, v *victim) { v.respond(t, attestor.MaxResponseSize) }},
		// Judged, a log needs several times its size: for its events, or for the digests in a database.
		{"the most events in logs", maxGrowthOfLogs, func(t *testing.T, v *victim) { v.sendLogs(t, manyEvents()) }},
		{"the most digests in logs", maxGrowthOfLogs, func(t *testing.T, v *victim) { v.sendLogs(t, manyDigests()) }},
		{"whole payloads of the largest message", maxGrowth, func(t *testing.T, v *victim) { v.send(t, 1<<20) }},
		{"half-sent payloads of the largest message", maxGrowth, func(t *testing.T, v *victim) { v.halfSend(t, 1<<20) }},
		{"half-sent payloads of the largest size", maxGrowth, func(t *testing.T, v *victim) { v.halfSend(t, attestor.MaxPayloadSize) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newVictim(t)
			v.attests(t)
			before := v.peak(t)
			tt.attack(t, v)
			growth := v.peak(t) - before
			t.Logf("the peak grows from %.1f MB by %.1f MB", float64(before)/(1<<20), float64(growth)/(1<<20))
			if growth > tt.most {
				t.Errorf("%d hostile agents cost %d MB", hostileAgents, growth>>20)
			}
			v.attests(t)
		})
	}
}

// victim is a server plugin that lists one machine and may have to fetch issuers for others.
type victim struct {
	*spire
	client nodeattestorv1.NodeAttestorClient
	honest *attestortest.TPM
	ca     *attestortest.CA
	hashes string // the folder of the list
	cas    string // the folder of CAs
}

// list lists the honest machine.
func (v *victim) list(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(v.hashes, v.honest.EKHash()), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func newVictim(t *testing.T, env ...string) *victim {
	t.Helper()
	v := &victim{
		spire:  startFor(t, built(t, "tpm-attestor-server"), env...),
		honest: attestortest.New(t, attestortest.Options{EK: attestor.P256}),
		ca:     attestortest.NewCA(t, "Example vendor"),
	}
	v.client = nodeattestorv1.NewNodeAttestorClient(v.conn)
	v.hashes = t.TempDir()
	v.list(t)
	v.cas = t.TempDir()
	other := attestortest.NewCA(t, "Another vendor").PEM()
	if err := os.WriteFile(filepath.Join(v.cas, "other.pem"), other, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.configure(fmt.Sprintf(`
source "hash_dir" "machines" { path = %q }
source "ek_ca" "vendors" {
  ca_path   = %q
  aia_hosts = ["pki.example.com"]
}
allow "all" { any = ["machines", "vendors"] }`, v.hashes, v.cas)); err != nil {
		t.Fatalf("%v\n%s", err, v.log)
	}
	return v
}

var vmHWM = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// peak returns the peak of the plugin's memory, in bytes.
func (v *victim) peak(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.pid))
	if err != nil {
		t.Fatalf("the plugin has gone: %v", err)
	}
	kib, err := strconv.Atoi(string(vmHWM.FindSubmatch(text)[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// attests checks that the listed machine can attest. Like SPIRE Agent, it tries again if the
// server is busy.
func (v *victim) attests(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := v.attest(ctx, t)
		if status.Code(err) == codes.Unavailable && ctx.Err() == nil {
			continue
		}
		if err != nil {
			t.Fatalf("the listed machine: %v", err)
		}
		return
	}
}

func (v *victim) attest(ctx context.Context, t *testing.T) error {
	t.Helper()
	stream, err := v.open(ctx, v.honest.Payload(t))
	if err != nil {
		return err
	}
	resp, err := stream.Recv()
	if err != nil {
		return err
	}
	_ = stream.Send(response(v.honest.Answer(t, resp.GetChallenge()))) // Recv has why
	resp, err = stream.Recv()
	if err == nil && resp.GetAgentAttributes() == nil {
		err = errors.New("a second challenge")
	}
	return err
}

func (v *victim) open(ctx context.Context, payload []byte) (nodeattestorv1.NodeAttestor_AttestClient, error) {
	stream, err := v.client.Attest(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&nodeattestorv1.AttestRequest{
		Request: &nodeattestorv1.AttestRequest_Payload{Payload: payload},
	}) // Recv has why
	return stream, nil
}

func response(b []byte) *nodeattestorv1.AttestRequest {
	return &nodeattestorv1.AttestRequest{Request: &nodeattestorv1.AttestRequest_ChallengeResponse{ChallengeResponse: b}}
}

// stranger returns a payload, made by fat, of a TPM whose issuer has to be fetched.
func (v *victim) stranger(t *testing.T, usages, arcs int) []byte {
	t.Helper()
	tpm := attestortest.New(t, attestortest.Options{
		EK: attestor.P256, Number: 1, CA: v.ca,
		Certificate: attestortest.Certificate{Change: func(c *x509.Certificate) {
			c.IssuingCertificateURL = []string{"http://pki.example.com/ca.crt"}
		}},
	})
	return v.fat(t, tpm.Claim(), usages, arcs)
}

// copy returns a payload, made by fat, with the EK of the listed machine. An EK is no secret.
func (v *victim) copy(t *testing.T, usages, arcs int) []byte {
	t.Helper()
	return v.fat(t, v.honest.Claim(), usages, arcs)
}

// fat returns the largest payload for a claim, filled up with certificates. Each has the given
// number of extended key usages. If arcs is more than 1, each key usage is a long OID.
func (v *victim) fat(t *testing.T, claim attestor.Claim, usages, arcs int) []byte {
	t.Helper()
	usage := asn1.ObjectIdentifier{0, 39}
	if arcs > 1 {
		usage = asn1.ObjectIdentifier{2, 1<<28 - 1, 1<<28 - 1, 1<<28 - 1, 1<<28 - 1}
	}
	cert := v.ca.Issue(t, claim.EK, attestortest.Certificate{Change: func(c *x509.Certificate) {
		for range usages {
			c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, usage)
		}
	}})
	var payload []byte
	for {
		claim.Chain = append(claim.Chain, cert)
		longer, err := attestor.NewProver(claim, nil).Payload()
		if err != nil {
			break
		}
		payload = longer
	}
	if len(payload) < attestor.MaxPayloadSize*3/4 {
		t.Fatalf("the payload has %d bytes only, the certificate %d", len(payload), len(cert))
	}
	return payload
}

// all calls do for each hostile agent at the same time, and returns when all have returned.
func all(t *testing.T, do func(ctx context.Context)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var agents sync.WaitGroup
	for range hostileAgents {
		agents.Go(func() { do(ctx) })
	}
	agents.Wait()
}

// holdChallenges attests with the payload up to the challenge, and does not answer it. If the
// server is busy, an agent tries again.
func (v *victim) holdChallenges(t *testing.T, payload []byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	var held atomic.Int32
	var outcomes outcomes
	end := time.Now().Add(patience)
	all(t, func(context.Context) {
		for {
			stream, err := v.open(ctx, payload)
			if err == nil {
				_, err = stream.Recv()
			}
			if err == nil {
				held.Add(1)
				return
			}
			if status.Code(err) != codes.Unavailable || time.Now().After(end) {
				outcomes.add(err)
				return
			}
		}
	})
	t.Logf("payloads of %d bytes: %d challenges held open, others %v", len(payload), held.Load(), outcomes.codes)
}

// patience is how long a hostile agent tries to get a challenge.
const patience = 1 * time.Second

// respond answers challenges with responses of size bytes, all at once.
func (v *victim) respond(t *testing.T, size int) {
	t.Helper()
	answer := bytes.Repeat([]byte{' '}, size)
	v.answer(t, v.honest.Payload(t), func([]byte) []byte { return answer })
}

// answer attests with the payload, and answers the challenges all at once.
func (v *victim) answer(t *testing.T, payload []byte, answer func(challenge []byte) []byte) {
	t.Helper()
	var ready sync.WaitGroup
	ready.Add(hostileAgents)
	var outcomes outcomes
	all(t, func(ctx context.Context) {
		stream, err := v.open(ctx, payload)
		var challenge *nodeattestorv1.AttestResponse
		if err == nil {
			challenge, err = stream.Recv()
		}
		var message *nodeattestorv1.AttestRequest
		if err == nil {
			message = response(answer(challenge.GetChallenge()))
		}
		ready.Done()
		if err != nil {
			outcomes.add(err)
			return
		}
		ready.Wait()
		_ = stream.Send(message) // Recv has why
		_, err = stream.Recv()
		outcomes.add(err)
	})
	outcomes.report(t)
}

// manyEvents returns a log of as many events as a log may have, all of one PCR that replays.
func manyEvents() *eventlogtest.Log {
	l := eventlogtest.New("sha256")
	for i := range eventlog.MaxEvents {
		l.AddEvent(eventlogtest.Event{PCR: 4, Type: eventlogtest.Application, Measured: fmt.Appendf(nil, "image %d", i)})
	}
	return l
}

// manyDigests returns a log whose dbx takes nearly all of the bytes that a log may have.
func manyDigests() *eventlogtest.Log {
	var dbx [][]byte
	for i := range (eventlog.MaxSize - 8<<10) / 48 {
		dbx = append(dbx, fmt.Appendf(nil, "%032d", i))
	}
	return eventlogtest.Boot{DBX: dbx}.Log()
}

// sendLogs has a listed machine that meets no boot profile quote its PCRs and send its log, all at once.
func (v *victim) sendLogs(t *testing.T, log *eventlogtest.Log) {
	t.Helper()
	tpm := attestortest.New(t, attestortest.Options{
		EK: attestor.P256, Number: 2, EventLog: log.Bytes(),
		PCRs: map[string]map[int][]byte{"sha256": log.PCRs("sha256")},
	})
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	other := strings.Repeat("ab", 32)
	err := v.configure(fmt.Sprintf(`
quote {
  pcrs      = [0, 2, 4, 7]
  event_log = "optional"
}
source "hash_dir" "machines" { path = %q }
source "hash_file" "measured" { path = %q }
source "boot_policy" "golden" { path = %q }
allow "listed" { any = ["machines"] }
allow "measured" { all = ["measured", "golden"] }`, v.hashes, write("measured.txt", tpm.EKHash()+"\n"), write("boot.json",
		`{"profiles": [{"name": "web", "images": {"only": ["`+other+`"]}, "secureboot": {"dbx": {"contains": ["`+other+`"]}}}]}`)))
	if err != nil {
		t.Fatal(err)
	}
	payload := tpm.Payload(t)
	v.answer(t, payload, func(challenge []byte) []byte { return tpm.Answer(t, challenge) })
}

// send sends payloads of size bytes, all at once.
func (v *victim) send(t *testing.T, size int) {
	t.Helper()
	payload := bytes.Repeat([]byte{' '}, size)
	var outcomes outcomes
	all(t, func(ctx context.Context) {
		stream, err := v.open(ctx, payload)
		if err == nil {
			_, err = stream.Recv()
		}
		outcomes.add(err)
	})
	outcomes.report(t)
}

// outcomes counts the status codes that agents have got.
type outcomes struct {
	mu    sync.Mutex
	codes map[codes.Code]int
}

func (o *outcomes) add(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.codes == nil {
		o.codes = map[codes.Code]int{}
	}
	o.codes[status.Code(err)]++
}

func (o *outcomes) report(t *testing.T) {
	t.Helper()
	t.Logf("%v", o.codes)
	if o.codes[codes.OK] > 0 {
		t.Errorf("%d were admitted", o.codes[codes.OK])
	}
}

// halfSend sends as much of each payload of size bytes as the plugin accepts, but never the last
// byte, and holds the streams open. No gRPC client does that, so it sends HTTP/2 frames.
func (v *victim) halfSend(t *testing.T, size int) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), v.addr.Network(), v.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	h := &halves{framer: http2.NewFramer(conn, conn), left: map[uint32]int{}, window: map[uint32]int{}, conn: 65535}
	if err := h.run(conn, size); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d streams are open, %d ended; %d bytes were taken", len(h.left), hostileAgents-len(h.left), h.sent)
	v.attests(t)
}

// halves are half-sent messages on one connection.
type halves struct {
	framer *http2.Framer
	left   map[uint32]int // bytes to send, by open stream
	window map[uint32]int // by stream
	conn   int            // the connection's window
	sent   int            // bytes
}

// quiet is how long the plugin must send no frame until run takes it for full.
const quiet = time.Second

func (h *halves) run(conn net.Conn, size int) error {
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return err
	}
	if err := h.framer.WriteSettings(); err != nil {
		return err
	}
	for i := range hostileAgents {
		if err := h.begin(uint32(2*i+1), size); err != nil {
			return err
		}
	}
	for {
		if err := h.flush(); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			return err
		}
		frame, err := h.framer.ReadFrame()
		if os.IsTimeout(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := h.took(frame); err != nil {
			return err
		}
	}
}

// begin opens a stream for a message of size bytes.
func (h *halves) begin(id uint32, size int) error {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "http"},
		{":path", "/spire.plugin.server.nodeattestor.v1.NodeAttestor/Attest"},
		{":authority", "localhost"},
		{"content-type", "application/grpc"},
		{"te", "trailers"},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	const prefix = 5
	h.left[id], h.window[id] = prefix+size-1, 65535
	err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	if err != nil {
		return err
	}
	head := make([]byte, prefix)
	binary.BigEndian.PutUint32(head[1:], uint32(size))
	return h.data(id, head)
}

// flush sends as much as the windows allow, one frame of each stream in turn.
func (h *halves) flush() error {
	chunk := make([]byte, 16<<10)
	for more := true; more; {
		more = false
		for id, left := range h.left {
			if n := min(left, len(chunk), h.window[id], h.conn); n > 0 {
				more = true
				if err := h.data(id, chunk[:n]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (h *halves) data(id uint32, b []byte) error {
	h.left[id] -= len(b)
	h.window[id] -= len(b)
	h.conn -= len(b)
	h.sent += len(b)
	return h.framer.WriteData(id, false, b)
}

// took handles a frame from the plugin.
func (h *halves) took(frame http2.Frame) error {
	id := frame.Header().StreamID
	switch f := frame.(type) {
	case *http2.WindowUpdateFrame:
		if id == 0 {
			h.conn += int(f.Increment)
		} else {
			h.window[id] += int(f.Increment)
		}
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		return h.framer.WriteSettingsAck()
	case *http2.PingFrame:
		if !f.IsAck() {
			return h.framer.WritePing(true, f.Data)
		}
	case *http2.HeadersFrame:
		if f.StreamEnded() {
			delete(h.left, id)
		}
	case *http2.RSTStreamFrame:
		delete(h.left, id)
	}
	return nil
}
