package httplist

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listsig"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// A verifier verifies that the holder of a key has made a list. Whoever holds
// the web server can then neither make up, replay, freeze nor swap one.
type verifier struct {
	url     *url.URL
	keyPath string
	listID  string
}

// newVerifier checks the configuration; there is none where nothing is set.
func newVerifier(cfg Config) (*verifier, []error) {
	if cfg.SignatureURL == "" && cfg.PublicKeyPath == "" && cfg.ListID == "" {
		return nil, nil
	}
	if cfg.SignatureURL == "" || cfg.PublicKeyPath == "" || cfg.ListID == "" {
		return nil, []error{errors.New(
			"the URL of the signature, the public key and the list's ID go together: set all of them, or none")}
	}
	u, errs := parseSignatureURL(cfg.SignatureURL, cfg.URL)
	return &verifier{url: u, keyPath: cfg.PublicKeyPath, listID: cfg.ListID}, about("the URL of the signature", errs)
}

// A publicKey is the key of this moment, and the SHA-256 of its file.
type publicKey struct {
	*listsig.PublicKey
	sum [sha256.Size]byte
}

// key reads the public key; nil where v is nil.
func (v *verifier) key() (*publicKey, error) {
	if v == nil {
		return nil, nil //nolint:nilnil // lists are not signed
	}
	pem, err := smallfile.Read(v.keyPath, listsig.MaxPublicKey)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	key, err := listsig.ParsePublicKey(pem)
	if err != nil {
		return nil, fmt.Errorf("the public key %q: %w", v.keyPath, err)
	}
	return &publicKey{key, sha256.Sum256(pem)}, nil
}

// verify fetches the signature and verifies it over the list.
func (v *verifier) verify(ctx context.Context, session *session, list []byte) error {
	resp, err := session.get(ctx, v.url, validators{})
	if err != nil {
		return fmt.Errorf("fetch the signature: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is of no use
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch the signature: %w", statusOf(resp))
	}
	body, err := decoded(resp, listsig.MaxSignature)
	if err != nil {
		return fmt.Errorf("fetch the signature: %w", err)
	}
	sig, err := io.ReadAll(io.LimitReader(body, listsig.MaxSignature+1))
	if err != nil {
		return fmt.Errorf("fetch the signature: %w", err)
	}
	if err := session.key.Verify(list, sig); err != nil {
		return fmt.Errorf("the list's signature: %w", err)
	}
	return nil
}

// accept returns why a list that was signed may not serve, or nil: one without
// serial, expiry and name could be replayed, frozen or swapped for another one
// that the same key has signed.
func (v *verifier) accept(h eklist.Header) error {
	switch {
	case !h.HasSerial || h.Expires.IsZero():
		return errors.New("a signed list needs serial and expires, against replays: publish it with both")
	case h.Name != v.listID:
		return fmt.Errorf("the signed list is %.80q and not %q: its field list must be the configured list_id",
			h.Name, v.listID)
	}
	return nil
}
