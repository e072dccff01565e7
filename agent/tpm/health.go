package tpm

import (
	"context"
	"errors"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// A Health is the state of a TPM, as far as it may keep an agent from attesting.
type Health struct {
	// LockedOut is true if the TPM refuses passwords because there were too many wrong ones. FailedTries counts the
	// wrong ones, and MostTries of them lock the TPM. The TPM forgets one after each Recovery, or none if Recovery
	// is zero.
	LockedOut              bool
	FailedTries, MostTries uint32
	Recovery               time.Duration
	// Keys and Sessions are the handles of loaded keys and sessions. Through the kernel's resource manager, a
	// program sees only its own, so there are none.
	Keys, Sessions []uint32
	// Own is how many of Keys are attestation keys that an agent of this project has left. An agent
	// removes them if it needs the room.
	Own int
	// Room is how many more keys the TPM has room for.
	Room uint32
}

// Health asks the TPM for its state. It loads nothing, and needs no password. If ctx ends, Health
// waits for the command under way and returns the cause of ctx.
func (t *TPM) Health(ctx context.Context) (_ *Health, err error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	h := new(Health)
	if err := h.readProperties(c); err != nil {
		return nil, explain("read the TPM's properties", err)
	}
	keys, err := listHandles(c, firstTransient, lastTransient)
	if err != nil {
		return nil, explain("list the loaded keys", err)
	}
	for _, handle := range keys {
		h.Keys = append(h.Keys, uint32(handle))
		if rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle}); err == nil && isMarked(rsp) {
			h.Own++
		}
	}
	sessions, err := capability(c, tpm2.TPMCapHandles, firstLoadedSession, listBatch)
	if err != nil {
		return nil, explain("list the loaded sessions", err)
	}
	loaded, err := sessions.CapabilityData.Data.Handles()
	if err != nil {
		return nil, explain("list the loaded sessions", err)
	}
	for _, handle := range loaded.Handle {
		h.Sessions = append(h.Sessions, uint32(handle))
	}
	if c.err != nil {
		return nil, explain("read the loaded keys", c.err)
	}
	return h, nil
}

// inLockout is a bit of TPM_PT_PERMANENT (part 2, 8.6: TPMA_PERMANENT).
const inLockout = 1 << 9

// readProperties reads the properties that vary (part 2, 6.13).
func (h *Health) readProperties(c *conn) error {
	rsp, err := capability(c, tpm2.TPMCapTPMProperties, uint32(tpm2.TPMPTPermanent), listBatch)
	if err != nil {
		return err
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return err
	}
	found := false
	for _, p := range props.TPMProperty {
		switch p.Property {
		case tpm2.TPMPTPermanent:
			h.LockedOut, found = p.Value&inLockout != 0, true
		case tpm2.TPMPTLockoutCounter:
			h.FailedTries = p.Value
		case tpm2.TPMPTMaxAuthFail:
			h.MostTries = p.Value
		case tpm2.TPMPTLockoutInterval:
			h.Recovery = time.Duration(p.Value) * time.Second
		case tpm2.TPMPTHRTransientAvail:
			h.Room = p.Value
		}
	}
	if !found {
		return errors.New("it does not say whether it is locked out")
	}
	return nil
}

// Device returns the device in the configuration. If the configuration names none, it returns the path of the machine's
// TPM device, or an empty string if the machine has no TPM device. A socket is "unix:" and its path.
func (t *TPM) Device() string {
	if t.config.Device != "" {
		return t.config.Device
	}
	return firstThere(ownDevices[:])
}
