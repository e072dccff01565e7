package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// quoteTries is how often PCRs are read and quoted if they change between the two. PCRs of the boot do not change
// after the boot; others may change whenever something is measured.
const quoteTries = 5

// bankNames are the names of banks in errors. A server may ask only for some of these banks.
var bankNames = map[tpm2.TPMAlgID]string{
	tpm2.TPMAlgSHA1:   "sha1",
	tpm2.TPMAlgSHA256: "sha256",
	tpm2.TPMAlgSHA384: "sha384",
	tpm2.TPMAlgSHA512: "sha512",
}

// listBanks returns the banks in which the TPM keeps PCRs (part 2, 6.12: TPM_CAP_PCRS).
func listBanks(c *conn) ([]tpm2.TPMAlgID, error) {
	rsp, err := capability(c, tpm2.TPMCapPCRs, 0, 1)
	if err != nil {
		return nil, err
	}
	assigned, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, err
	}
	var banks []tpm2.TPMAlgID
	for _, s := range assigned.PCRSelections {
		if countPCRs(s.PCRSelect) > 0 {
			banks = append(banks, s.Hash)
		}
	}
	return banks, nil
}

// canQuote reports whether the TPM has a bank that a server may ask for.
func (caps *capabilities) canQuote() bool {
	return slices.Contains(caps.banks, tpm2.TPMAlgSHA256) || slices.Contains(caps.banks, tpm2.TPMAlgSHA384)
}

// quote reads PCRs and has the loaded AK quote them. The values that it returns are the quoted
// values.
func (a *Attestation) quote(c *conn, ak *key, req *attestor.QuoteRequest, data []byte) (*attestor.SignedQuote, error) {
	for range quoteTries {
		values, err := a.readPCRs(c, req)
		if err != nil {
			return nil, err
		}
		rsp, err := execute(c, tpm2.Quote{
			SignHandle:     ak.authorized(tpm2.PasswordAuth(nil)),
			QualifyingData: tpm2.TPM2BData{Buffer: data},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the AK's
			PCRSelect:      tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{req.Selection()}},
		})
		if err != nil {
			return nil, explain("quote the PCRs", err)
		}
		same, err := isQuoteOf(rsp, values)
		if err != nil {
			return nil, fmt.Errorf("quote the PCRs: %w", err)
		}
		if same {
			return &attestor.SignedQuote{
				Attest: rsp.Quoted.Bytes(), Signature: tpm2.Marshal(rsp.Signature), PCRs: values,
			}, nil
		}
	}
	return nil, &Error{
		Class: ErrNotReady, Err: fmt.Errorf("quote the PCRs: they have changed during each of %d tries", quoteTries),
		Hint: "have the server ask for PCRs that the boot has settled, such as 0 to 7",
	}
}

// isQuoteOf reports whether a quote is about values. An AK of this plugin signs with SHA-256, so
// the digest of the values is SHA-256 too (part 3, 18.4).
func isQuoteOf(rsp *tpm2.QuoteResponse, values []attestor.PCR) (bool, error) {
	attest, err := rsp.Quoted.Contents()
	if err != nil {
		return false, err
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		return false, err
	}
	h := sha256.New()
	for _, pcr := range values {
		h.Write(pcr.Digest)
	}
	return bytes.Equal(h.Sum(nil), info.PCRDigest.Buffer), nil
}

// readPCRs returns the values of the PCRs of a valid request, in its order. A TPM returns as
// many as it likes at a time, which is usually eight (part 3, 22.4).
func (a *Attestation) readPCRs(c *conn, req *attestor.QuoteRequest) ([]attestor.PCR, error) {
	const doing = "read the PCRs"
	all := make(map[int][]byte)
	rest := req.Selection()
	for countPCRs(rest.PCRSelect) > 0 {
		rsp, err := execute(c, tpm2.PCRRead{
			PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{rest}},
		})
		if errors.Is(err, tpm2.TPMRCHash) || errors.Is(err, tpm2.TPMRCValue) {
			return nil, a.noBank(req) // the TPM does not know the algorithm
		}
		if err != nil {
			return nil, explain(doing, err)
		}
		n, err := takePCRs(rsp, rest, all)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		if n == 0 {
			return nil, a.noBank(req)
		}
	}
	var values []attestor.PCR
	for _, pcr := range req.PCRs {
		values = append(values, attestor.PCR{Index: pcr, Digest: all[pcr]})
	}
	return values, nil
}

// takePCRs adds the values in a response to all, and removes their PCRs from rest. It returns their number. It is
// an error if the response has values that were not asked for.
func takePCRs(rsp *tpm2.PCRReadResponse, rest tpm2.TPMSPCRSelection, all map[int][]byte) (int, error) {
	digests := rsp.PCRValues.Digests
	size, err := rest.Hash.Hash()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, s := range rsp.PCRSelectionOut.PCRSelections {
		for i := range len(s.PCRSelect) * 8 {
			if s.PCRSelect[i/8]>>(i%8)&1 == 0 {
				continue
			}
			if s.Hash != rest.Hash || i/8 >= len(rest.PCRSelect) || rest.PCRSelect[i/8]>>(i%8)&1 == 0 {
				return 0, fmt.Errorf("the TPM returned PCR %d of the bank %s, not asked for", i, nameOfBank(s.Hash))
			}
			if n == len(digests) || len(digests[n].Buffer) != size.Size() {
				return 0, fmt.Errorf("the TPM returned no value of PCR %d", i)
			}
			all[i] = digests[n].Buffer
			rest.PCRSelect[i/8] &^= 1 << (i % 8)
			n++
		}
	}
	if n != len(digests) {
		return 0, fmt.Errorf("the TPM returned %d values of %d PCRs", len(digests), n)
	}
	return n, nil
}

// noBank returns the error for PCRs that the TPM does not keep.
func (a *Attestation) noBank(req *attestor.QuoteRequest) error {
	var have []string
	for _, bank := range a.banks {
		have = append(have, nameOfBank(bank))
	}
	return &Error{
		Class: ErrSetup,
		Err: fmt.Errorf("read the PCRs: the TPM does not have all of the PCRs %v in a bank %s; its banks are %s",
			req.PCRs, req.Bank, strings.Join(have, ", ")),
		Hint: "enable that bank in the firmware's setup, or with tpm2_pcrallocate and a restart, " +
			"or have the server ask for another bank (bank in its quote block)",
	}
}

func nameOfBank(alg tpm2.TPMAlgID) string {
	if name, ok := bankNames[alg]; ok {
		return name
	}
	return fmt.Sprintf("%#04x", uint16(alg))
}

func countPCRs(selected []byte) int {
	n := 0
	for _, b := range selected {
		n += bits.OnesCount8(b)
	}
	return n
}

// PCRs reads the PCRs of a valid request. It does not prove the values: only a quote does. If ctx ends, PCRs waits
// for the command under way and returns the cause of ctx.
func (t *TPM) PCRs(ctx context.Context, req *attestor.QuoteRequest) (_ map[int][]byte, err error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	banks, err := listBanks(c)
	if err != nil {
		return nil, explain("list the TPM's PCR banks", err)
	}
	values, err := (&Attestation{banks: banks}).readPCRs(c, req)
	if err != nil {
		return nil, err
	}
	all := make(map[int][]byte, len(values))
	for _, pcr := range values {
		all[pcr.Index] = pcr.Digest
	}
	return all, nil
}
