package attestortest

import (
	"bytes"
	"crypto"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Quote is TPM2_PCR_Read and TPM2_Quote with the AK (TPM 2.0 library specification, part 3, 22.4
// and 18.4). Like a real TPM, it quotes for anybody who may use the AK.
func (t *TPM) Quote(req *attestor.QuoteRequest, qualifyingData []byte) (*attestor.SignedQuote, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	q := new(attestor.SignedQuote)
	var all []byte
	for _, pcr := range req.PCRs {
		value, err := t.pcr(req.Bank, pcr)
		if err != nil {
			return nil, err
		}
		q.PCRs = append(q.PCRs, attestor.PCR{Index: pcr, Digest: value})
		all = append(all, value...)
	}
	attest := creationAttest(t.akName, nil) // for its clock and version
	attest.Type = tpm2.TPMSTAttestQuote
	attest.ExtraData = tpm2.TPM2BData{Buffer: qualifyingData}
	attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{req.Selection()}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: digest(crypto.SHA256, all)},
	})
	if t.options.ForgeQuote != nil {
		t.options.ForgeQuote(&attest)
	}
	q.Attest = tpm2.Marshal(&attest)
	var err error
	q.Signature, err = sign(t.ak, t.options.PSS, q.Attest)
	return q, err
}

// pcr returns the value of a PCR.
func (t *TPM) pcr(bank string, index int) ([]byte, error) {
	size := map[string]int{"sha256": crypto.SHA256.Size(), "sha384": crypto.SHA384.Size()}[bank]
	value, ok := t.options.PCRs[bank][index]
	if !ok {
		return make([]byte, size), nil
	}
	if len(value) != size {
		return nil, fmt.Errorf("PCR %d of the bank %s has %d bytes: want %d", index, bank, len(value), size)
	}
	return bytes.Clone(value), nil
}
