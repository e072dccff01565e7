package attestor

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// What an agent can send besides the secret: the values of its payload's Can.
const (
	CanPCRs     = "pcrs"      // it can quote PCRs
	CanEventLog = "event_log" // it can send the firmware's event log
	CanDevID    = "devid"     // it has a DevID
)

// MaxEventLogSize is the size of the largest event log, in bytes. An agent does not send a longer
// log, and a server does not parse one.
const MaxEventLogSize = 256 << 10

// ErrQuoteFailed is wrapped by an error of Session.Finish if the quote in the response is missing,
// or is well formed but not the one that was asked for: it is signed by another key, or is over
// other PCRs, other values, or other nonces.
var ErrQuoteFailed = errors.New("the quote is not the one that the challenge asks for")

// The PCRs of a PC Client TPM are 0 to 23. A selection of them has three bytes.
const (
	maxPCRs       = 24
	pcrSelectSize = maxPCRs / 8
)

// nonceSize is the size of both sides' nonces in bytes.
const nonceSize = 32

// QuoteRequest says which PCRs to quote.
type QuoteRequest struct {
	Bank string // "sha256" or "sha384"
	PCRs []int  // at least one, each from 0 to 23, strictly ascending
}

// Quote is what a TPM has quoted.
type Quote struct {
	Bank string
	PCRs map[int][]byte // by index; each has the size of the bank's digests
}

// SignedQuote is a quote as TPM2_Quote returns it, with the PCR values that it covers.
type SignedQuote struct {
	Attest    []byte // TPMS_ATTEST
	Signature []byte // TPMT_SIGNATURE
	PCRs      []PCR  // those of the request, in its order
}

// PCR is the value of a PCR.
type PCR struct {
	Index  int
	Digest []byte
}

// Validate returns an error if the request is not well formed. SHA-1 banks are refused: two values
// with the same digest can be made.
func (q *QuoteRequest) Validate() error {
	if _, err := q.bank(); err != nil {
		return err
	}
	if len(q.PCRs) == 0 {
		return errors.New("no PCRs")
	}
	last := -1
	for _, pcr := range q.PCRs {
		if pcr < 0 || pcr >= maxPCRs {
			return fmt.Errorf("PCR %d: want 0 to %d", pcr, maxPCRs-1)
		}
		if pcr <= last {
			return fmt.Errorf("PCR %d behind PCR %d: want them ascending, each once", pcr, last)
		}
		last = pcr
	}
	return nil
}

// bank returns the algorithm of the bank.
func (q *QuoteRequest) bank() (tpm2.TPMAlgID, error) {
	switch q.Bank {
	case "sha256":
		return tpm2.TPMAlgSHA256, nil
	case "sha384":
		return tpm2.TPMAlgSHA384, nil
	}
	return 0, errors.New(`an unknown bank: want "sha256" or "sha384"`)
}

// Selection returns the TPM structure (part 2, 10.6.2) that selects the PCRs of a valid request. It
// returns an empty structure if the request is not valid.
func (q *QuoteRequest) Selection() tpm2.TPMSPCRSelection {
	bank, err := q.bank()
	if err != nil || q.Validate() != nil {
		return tpm2.TPMSPCRSelection{}
	}
	selected := make([]byte, pcrSelectSize)
	for _, pcr := range q.PCRs {
		selected[pcr/8] |= 1 << (pcr % 8)
	}
	return tpm2.TPMSPCRSelection{Hash: bank, PCRSelect: selected}
}

// qualifyingData returns the qualifying data of a quote. It depends on both nonces, so that neither
// side alone chooses what the AK signs. The fixed prefix keeps it apart from what the AK signs for
// other purposes.
func qualifyingData(server, agent []byte) []byte {
	sum := sha256.Sum256(slices.Concat([]byte("spire-tpm-attestor quote 1\x00"), server, agent))
	return sum[:]
}

func quoteFailed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrQuoteFailed, fmt.Sprintf(format, args...))
}

// checkQuote returns what the AK has quoted. The quote must be for req and over data, and the
// values must hash to its digest with the hash of the AK's scheme (part 3, 18.4).
func (k *signer) checkQuote(q *SignedQuote, req *QuoteRequest, data []byte) (*Quote, error) {
	if q == nil {
		return nil, quoteFailed("the agent sent none")
	}
	extraData, pcrDigest, err := readQuote(q.Attest, req.Selection())
	if err != nil {
		return nil, fmt.Errorf("Quote.Attest: %w", err)
	}
	hash, err := hashFor(k.schemeHash)
	if err != nil {
		return nil, err
	}
	switch err := k.verify(q.Attest, q.Signature); {
	case errors.Is(err, errNotSigned):
		return nil, quoteFailed("Quote.Signature: %v", err)
	case err != nil:
		return nil, fmt.Errorf("Quote.Signature: %w", err)
	}
	if !bytes.Equal(extraData, data) {
		return nil, quoteFailed("it is not over this session's nonces")
	}
	values, all, err := q.values(req)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(digest(hash, all), pcrDigest) {
		return nil, quoteFailed("the values in Quote.PCRs are not those that the TPM has quoted")
	}
	return &Quote{Bank: req.Bank, PCRs: values}, nil
}

// readQuote reads the TPMS_ATTEST (part 2, 10.12.12) of a quote of one selection.
//
// The selection must have exactly the bytes of want. A selection of four bytes could differ from it
// only by PCRs above 23 or by needless zeros. A TPM returns as many bytes as it was given (part 3,
// 18.4), and a PC Client TPM accepts no fewer than three.
func readQuote(b []byte, want tpm2.TPMSPCRSelection) (extraData, pcrDigest []byte, err error) {
	r := &reader{b: b}
	extraData = r.attest(tpm2.TPMSTAttestQuote, "a quote")
	if n := r.u32(); r.err == nil && n != 1 {
		r.fail(quoteFailed("a quote of %d PCR selections: want 1", n))
	}
	if bank := r.alg(); r.err == nil && bank != want.Hash {
		r.fail(quoteFailed("a quote of the bank %#04x: want %#04x", uint16(bank), uint16(want.Hash)))
	}
	size := int(r.u8())
	if selected := r.take(size); r.err == nil && !bytes.Equal(selected, want.PCRSelect) {
		r.fail(quoteFailed("a quote of other PCRs"))
	}
	pcrDigest = r.sized(maxDigest)
	if err := r.end(); err != nil {
		return nil, nil, err
	}
	return extraData, pcrDigest, nil
}

// values returns the values of the quoted PCRs by index, and their concatenation in the order of
// their indices. It returns an error if they are not exactly those of req, in its order: otherwise
// one of two values for a PCR could be hashed and the other one returned.
func (q *SignedQuote) values(req *QuoteRequest) (_ map[int][]byte, joined []byte, _ error) {
	bank, err := req.bank()
	if err != nil {
		return nil, nil, err
	}
	hash, err := hashFor(bank)
	if err != nil {
		return nil, nil, err
	}
	if len(q.PCRs) != len(req.PCRs) {
		return nil, nil, quoteFailed("%d values in Quote.PCRs: want %d", len(q.PCRs), len(req.PCRs))
	}
	values := make(map[int][]byte, len(q.PCRs))
	for i, pcr := range q.PCRs {
		if pcr.Index != req.PCRs[i] {
			return nil, nil, quoteFailed("PCR %d in Quote.PCRs instead of PCR %d", pcr.Index, req.PCRs[i])
		}
		if len(pcr.Digest) != hash.Size() {
			return nil, nil, quoteFailed("PCR %d has %d bytes: want %d", pcr.Index, len(pcr.Digest), hash.Size())
		}
		values[pcr.Index] = pcr.Digest
		joined = append(joined, pcr.Digest...)
	}
	return values, joined, nil
}
