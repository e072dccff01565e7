package tpm

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// hang is a TPM that never answers.
func hang(ctx context.Context, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// A TPM that never answers does not block the agent for ever. A command that makes a key
// may take minutes, any other command seconds.
func TestHungTPMTimesOut(t *testing.T) {
	makeKey := func(c *conn) error {
		_, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate),
		}.Execute(c)
		return err
	}
	read := func(c *conn) error {
		_, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81010001)}.Execute(c)
		return err
	}
	for name, tt := range map[string]struct {
		command func(*conn) error
		timeout time.Duration // of the attestation
		after   time.Duration // until the command ends
		err     error
	}{
		"a command":               {read, time.Hour, commandTimeout, errTimeout},
		"a key":                   {makeKey, time.Hour, makeTimeout, errTimeout},
		"a command under way":     {read, time.Second, commandTimeout, errTimeout},
		"a key under way":         {makeKey, time.Second, makeTimeout, errTimeout},
		"ended before it has run": {read, 0, 0, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
				defer cancel()
				start := time.Now()
				if err := tt.command(newConn(ctx, fakeChannel(hang))); !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %v", err, tt.err)
				}
				if got := time.Since(start); got != tt.after {
					t.Errorf("after %v, want %v", got, tt.after)
				}
			})
		})
	}
}

// A TPM that hangs, or makes a key for minutes, does not block an agent that shuts down.
// But Do waits for a fast TPM, so that f can flush what it has made.
func TestDoReturnsWhenTheAttestationEnds(t *testing.T) {
	for _, tt := range []struct {
		takes, after time.Duration
		err          error
	}{
		{time.Minute, time.Second + grace, context.DeadlineExceeded},
		{time.Second + grace/2, time.Second + grace/2, errFault},
		{time.Second / 2, time.Second / 2, errFault},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			err := Do(ctx, func() error {
				time.Sleep(tt.takes)
				return errFault
			})
			if got := time.Since(start); got != tt.after || !errors.Is(err, tt.err) {
				t.Errorf("%v: error %v after %v, want %v after %v", tt.takes, err, got, tt.err, tt.after)
			}
			time.Sleep(tt.takes) // until f has returned
		})
	}
}

// At the end of an attestation, a hung TPM blocks the agent for one command at most, even
// if several keys are to be flushed.
func TestHungTPMDoesNotBlockFlushing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConn(t.Context(), fakeChannel(hang))
		start := time.Now()
		for range 2 {
			k := &key{handle: 0x80000001}
			k.flush(c)
		}
		if got := time.Since(start); got > commandTimeout {
			t.Errorf("flushing took %v", got)
		}
	})
}

// A socket that takes a command and never answers does not block an attestation that has
// been cancelled.
func TestHungSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, maxResponse))
		cancel()                                    // the command is there
		_, _ = conn.Read(make([]byte, maxResponse)) // until the client closes
	}()
	ch, err := openSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	if _, err := ch.roundTrip(ctx, []byte("command")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A device whose driver hangs in a command does not block an attestation that has been
// cancelled.
func TestHungDevice(t *testing.T) {
	dev := &blockingDevice{entered: make(chan struct{}), leave: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-dev.entered
		cancel()
	}()
	ch := &deviceChannel{dev}
	if _, err := ch.roundTrip(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	close(dev.leave)
	if err := ch.Close(); err != nil {
		t.Error(err)
	}
	// The response of a device that answers is returned.
	rsp, err := ch.roundTrip(t.Context(), nil)
	if err != nil || !bytes.Equal(rsp, response(tpm2.TPMRCSuccess)) {
		t.Errorf("answer %q, %v", rsp, err)
	}
}

type blockingDevice struct {
	entered, leave chan struct{}
	once           sync.Once
}

func (d *blockingDevice) Write(b []byte) (int, error) {
	d.once.Do(func() { close(d.entered) })
	<-d.leave
	return len(b), nil
}

func (d *blockingDevice) Read(b []byte) (int, error) {
	return copy(b, response(tpm2.TPMRCSuccess)), nil
}

func (d *blockingDevice) Close() error { return nil }

// If a TPM is not ready for a command, the command is sent again a few times. So a TPM
// that tests itself for a moment does not fail an attestation, and a TPM that never gets
// ready does not block it for ever.
func TestResend(t *testing.T) {
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			c := newConn(t.Context(), fakeChannel(func(context.Context, []byte) ([]byte, error) {
				if n++; n < 4 {
					return response(code), nil
				}
				return response(tpm2.TPMRCSuccess), nil
			}))
			if _, err := (tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}).Execute(c); err != nil {
				t.Errorf("%v: %v", code, err)
			}
			n = -1000
			start := time.Now()
			_, err := tpm2.FlushContext{FlushHandle: tpm2.TPMHandle(0x80000000)}.Execute(c)
			if !errors.Is(explain("flush", err), ErrNotReady) {
				t.Errorf("%v: %v", code, err)
			}
			if got := time.Since(start); got < time.Second || got > time.Minute {
				t.Errorf("Send gave up after %v", got)
			}
		})
	}
	// If the attestation ends, so does the pause.
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*firstPause/2)
		defer cancel()
		c := newConn(ctx, fakeChannel(func(context.Context, []byte) ([]byte, error) {
			return response(tpm2.TPMRCRetry), nil
		}))
		if _, err := c.Send(make([]byte, headerSize)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

// A response that does not come from a TPM 2.0, or whose size is wrong, too large or not
// reached, is an error that says so: a faulty software TPM can make the agent neither allocate
// memory nor mix up responses.
func TestMalformedSocketResponses(t *testing.T) {
	for name, tt := range map[string]struct {
		send string
		want string
	}{
		"larger than a response": {"\x80\x01\xFF\xFF\xFF\xFF\x00\x00\x00\x00", "4294967295 bytes"},
		"larger by one":          {"\x80\x01\x00\x00\x10\x01\x00\x00\x00\x00", "4097 bytes"},
		"smaller than a header":  {"\x80\x01\x00\x00\x00\x01\x00\x00\x00\x00", "1 bytes long"},
		"cut in the header":      {"\x80\x01\x00", "unexpected EOF"},
		"cut in the body":        {"\x80\x01\x00\x00\x00\x10\x00\x00\x00\x00\x00", "unexpected EOF"},
		"nothing":                {"", "EOF"},
		"more than it says":      {"\x80\x01\x00\x00\x00\x0A\x00\x00\x00\x00more", "14 bytes instead of 10"},
		"a TPM 1.2":              {"\x00\xC4\x00\x00\x00\x0A\x00\x00\x00\x00", "TPM 2.0 is needed"},
		"a web server's":         {"HTTP/1.1 400 Bad Request\r\n\r\n", "not a TPM 2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = server.Read(make([]byte, 100))
				_, _ = server.Write([]byte(tt.send))
				server.Close()
			}()
			ch := &socketChannel{client, "/nowhere"}
			_, err := ch.roundTrip(t.Context(), []byte("command"))
			if err == nil || !strings.Contains(err.Error(), tt.want) ||
				errors.Is(err, ErrSetup) == strings.Contains(tt.want, "EOF") {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			ch.Close()
			<-done
		})
	}
}
