package tpm

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// handlesResponse returns a response with a batch of a list of handles.
func handlesResponse(more byte, handles ...uint32) []byte {
	body := []byte{more, 0, 0, 0, byte(tpm2.TPMCapHandles)}
	body = binary.BigEndian.AppendUint32(body, uint32(len(handles)))
	for _, h := range handles {
		body = binary.BigEndian.AppendUint32(body, h)
	}
	return response(tpm2.TPMRCSuccess, body...)
}

// A TPM may return a list in several batches. A faulty TPM whose list never ends, or goes
// backwards, does not block the agent.
func TestLists(t *testing.T) {
	const first, last = 0x01C00000, 0x01C000FF
	for name, tt := range map[string]struct {
		answer func(property uint32) []byte
		want   int
		err    string
	}{
		"none": {func(uint32) []byte { return handlesResponse(0) }, 0, ""},
		"in two parts": {func(p uint32) []byte {
			if p == first {
				return handlesResponse(1, first+2, first+3)
			}
			return handlesResponse(0, max(p, first+10))
		}, 3, ""},
		"beyond the last": {func(uint32) []byte { return handlesResponse(0, first, last, last+1) }, 2, ""},
		"without end":     {func(p uint32) []byte { return handlesResponse(1, p) }, 0, "no end"},
		"empty for ever":  {func(uint32) []byte { return handlesResponse(1) }, 0, ""},
		"backwards":       {func(p uint32) []byte { return handlesResponse(1, p-1) }, 0, "out of order"},
		"unsorted":        {func(p uint32) []byte { return handlesResponse(0, p+2, p+1) }, 0, "out of order"},
		"another list": {func(uint32) []byte {
			return response(tpm2.TPMRCSuccess, 0, 0, 0, 0, byte(tpm2.TPMCapAlgs), 0, 0, 0, 0)
		}, 0, "instead of"},
		"a code": {func(uint32) []byte { return response(tpm2.TPMRCValue) }, 0, "TPM_RC_VALUE"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConn(t.Context(), fakeChannel(func(_ context.Context, command []byte) ([]byte, error) {
				return tt.answer(binary.BigEndian.Uint32(command[14:])), nil
			}))
			handles, err := listHandles(c, first, last)
			if (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if len(handles) != tt.want {
				t.Errorf("handles %#x, want %d", handles, tt.want)
			}
		})
	}
}

// The agent reads an NV index in pieces of the size that the TPM states. If the TPM states
// no size, or a size that does not fit into a response, the agent reads in pieces that every
// TPM returns: otherwise it could not read the EK certificate.
func TestNVBuffer(t *testing.T) {
	for name, tt := range map[string]struct {
		properties []uint32
		want       uint16
	}{
		"said":        {[]uint32{uint32(tpm2.TPMPTNVBufferMax), 1024}, 1024},
		"not said":    {nil, defaultNVBuffer},
		"another one": {[]uint32{uint32(tpm2.TPMPTNVBufferMax) + 1, 1}, defaultNVBuffer},
		"nothing":     {[]uint32{uint32(tpm2.TPMPTNVBufferMax), 0}, defaultNVBuffer},
		"too much":    {[]uint32{uint32(tpm2.TPMPTNVBufferMax), 1 << 31}, maxResponse / 2},
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte{0, 0, 0, 0, byte(tpm2.TPMCapTPMProperties)}
			body = binary.BigEndian.AppendUint32(body, uint32(len(tt.properties)/2))
			for _, p := range tt.properties {
				body = binary.BigEndian.AppendUint32(body, p)
			}
			c := newConn(t.Context(), fakeChannel(func(context.Context, []byte) ([]byte, error) {
				return response(tpm2.TPMRCSuccess, body...), nil
			}))
			if got, err := readNVBuffer(c); got != tt.want || err != nil {
				t.Errorf("%d, %v, want %d", got, err, tt.want)
			}
		})
	}
}
