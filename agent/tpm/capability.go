package tpm

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

const (
	// listBatch is how many entries of a list one command asks for. A TPM may
	// return fewer and say that there are more (part 3, 30.2).
	listBatch = 128
	// maxBatches is how many times a list is continued. A faulty TPM may say
	// for ever that there are more entries.
	maxBatches = 64
	// defaultNVBuffer is how many bytes of an NV index one command reads if
	// the TPM does not state its limit. Every TPM for PCs can return more.
	defaultNVBuffer = 512
)

// capabilities are what a TPM can do, as far as an attestation depends on it.
type capabilities struct {
	algorithms []tpm2.TPMAlgID
	curves     []tpm2.TPMECCCurve
	banks      []tpm2.TPMAlgID // in which it keeps PCRs
	nvBuffer   uint16          // how many bytes TPM2_NV_Read returns at most
}

func readCapabilities(c *conn) (*capabilities, error) {
	caps := new(capabilities)
	var err error
	if caps.algorithms, err = listAlgorithms(c); err != nil {
		return nil, explain("list the TPM's algorithms", err)
	}
	if slices.Contains(caps.algorithms, tpm2.TPMAlgECC) {
		if caps.curves, err = listCurves(c); err != nil {
			return nil, explain("list the TPM's curves", err)
		}
	}
	if caps.banks, err = listBanks(c); err != nil {
		return nil, explain("list the TPM's PCR banks", err)
	}
	if caps.nvBuffer, err = readNVBuffer(c); err != nil {
		return nil, explain("read the TPM's properties", err)
	}
	return caps, nil
}

// can reports whether the TPM has the algorithm and the curve of a key type. TPMs
// do not list their RSA key sizes: making a key of a missing size fails.
func (caps *capabilities) can(t attestor.KeyType) bool {
	curves := map[attestor.KeyType]tpm2.TPMECCCurve{
		attestor.P256: tpm2.TPMECCNistP256,
		attestor.P384: tpm2.TPMECCNistP384,
		attestor.P521: tpm2.TPMECCNistP521,
	}
	if curve, ok := curves[t]; ok {
		return slices.Contains(caps.curves, curve)
	}
	return slices.Contains(caps.algorithms, tpm2.TPMAlgRSA)
}

// canSign reports whether the TPM can make an AK of type t, one of akTypes. A P-256
// AK signs with ECDSA.
func (caps *capabilities) canSign(t attestor.KeyType) bool {
	return caps.can(t) && (t != attestor.P256 || slices.Contains(caps.algorithms, tpm2.TPMAlgECDSA))
}

// capability asks for count entries of a capability, starting with the entry first.
// It returns an error if the TPM answers with another capability.
func capability(c *conn, of tpm2.TPMCap, first, count uint32) (*tpm2.GetCapabilityResponse, error) {
	rsp, err := execute(c, tpm2.GetCapability{Capability: of, Property: first, PropertyCount: count})
	if err != nil {
		return nil, err
	}
	if got := rsp.CapabilityData.Capability; got != of {
		return nil, fmt.Errorf("the TPM answered with the capability %#x instead of %#x",
			uint32(got), uint32(of))
	}
	return rsp, nil
}

// list reads a whole list of TPM2_GetCapability in batches, starting with the entry
// first. The function entries extracts a batch from a response. A list that is not
// in ascending order is an error.
func list[E ~uint16 | ~uint32](c *conn, of tpm2.TPMCap, first E,
	entries func(*tpm2.TPMUCapabilities) ([]E, error),
) ([]E, error) {
	var all []E
	for range maxBatches {
		rsp, err := capability(c, of, uint32(first), listBatch)
		if err != nil {
			return nil, err
		}
		batch, err := entries(&rsp.CapabilityData.Data)
		if err != nil {
			return nil, err
		}
		if len(batch) > 0 && (!slices.IsSorted(batch) || batch[0] < first) {
			return nil, errors.New("the list is out of order")
		}
		all = append(all, batch...)
		if !rsp.MoreData || len(batch) == 0 {
			return all, nil
		}
		first = batch[len(batch)-1] + 1
	}
	return nil, errors.New("the list has no end")
}

func listAlgorithms(c *conn) ([]tpm2.TPMAlgID, error) {
	return list(c, tpm2.TPMCapAlgs, 0, func(u *tpm2.TPMUCapabilities) ([]tpm2.TPMAlgID, error) {
		props, err := u.Algorithms()
		if err != nil {
			return nil, err
		}
		algs := make([]tpm2.TPMAlgID, len(props.AlgProperties))
		for i, p := range props.AlgProperties {
			algs[i] = p.Alg
		}
		return algs, nil
	})
}

func listCurves(c *conn) ([]tpm2.TPMECCCurve, error) {
	return list(c, tpm2.TPMCapECCCurves, 0, func(u *tpm2.TPMUCapabilities) ([]tpm2.TPMECCCurve, error) {
		curves, err := u.ECCCurves()
		if err != nil {
			return nil, err
		}
		return curves.ECCCurves, nil
	})
}

// listHandles returns the handles from first to last.
func listHandles(c *conn, first, last tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	all, err := list(c, tpm2.TPMCapHandles, first, func(u *tpm2.TPMUCapabilities) ([]tpm2.TPMHandle, error) {
		handles, err := u.Handles()
		if err != nil {
			return nil, err
		}
		return handles.Handle, nil
	})
	return slices.DeleteFunc(all, func(h tpm2.TPMHandle) bool { return h > last }), err
}

// readNVBuffer reads TPM_PT_NV_BUFFER_MAX (part 2, 6.13).
func readNVBuffer(c *conn) (uint16, error) {
	rsp, err := capability(c, tpm2.TPMCapTPMProperties, uint32(tpm2.TPMPTNVBufferMax), 1)
	if err != nil {
		return 0, err
	}
	props, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	for _, p := range props.TPMProperty {
		if p.Property == tpm2.TPMPTNVBufferMax && p.Value > 0 {
			// A TPM may claim more than fits into a response.
			return uint16(min(p.Value, maxResponse/2)), nil
		}
	}
	return defaultNVBuffer, nil
}
