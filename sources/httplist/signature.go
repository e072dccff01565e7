package httplist

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listsig"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// A verifier verifies that the holder of one of a few keys has made a list. Whoever holds
// the web server can then neither make up, replay, freeze nor swap one.
type verifier struct {
	url     *url.URL
	keyPath string
	listID  string
}

// newVerifier checks the configuration; there is none where nothing is set.
func newVerifier(cfg Config, list *url.URL) (*verifier, error) {
	if cfg.SignatureURL == "" && cfg.PublicKeyPath == "" && cfg.ListID == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	u, err := cfg.checkSigned(list)
	return &verifier{url: u, keyPath: cfg.PublicKeyPath, listID: cfg.ListID}, err
}

// keys reads the public keys.
func (v *verifier) keys() (listsig.PublicKeys, error) {
	pem, err := smallfile.Read(v.keyPath, listsig.MaxPublicKeys)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	keys, err := listsig.ParsePublicKeys(pem)
	if err != nil {
		return nil, fmt.Errorf("the public key %q: %w", v.keyPath, err)
	}
	return keys, nil
}

// trust reads the public keys. A list that none of them has signed is dropped at
// once, with its serial, and so is one in the cache: a key is taken out of the file
// because it was stolen, and whoever has it may have signed any list with any serial.
func (s *Source) trust() error {
	if s.verifier == nil {
		return nil
	}
	keys, err := s.verifier.keys()
	if err != nil {
		return err
	}
	s.keys = keys
	if s.cache != nil {
		ids := make([]listcache.Key, len(keys))
		for i, key := range keys {
			ids[i] = listcache.Key(key.ID())
		}
		s.cache.Trust(ids...)
	}
	if st := s.state.Load(); st != nil && !keys.Has(st.key) {
		s.state.Store(nil)
		s.loadWarning = fmt.Sprintf("the list was dropped: the key that signed it is no longer in %q",
			s.verifier.keyPath)
	}
	return nil
}

// verify fetches the signature and verifies it over the list. It returns the ID of
// the key that has signed.
func (s *Source) verify(ctx context.Context, session *session, list []byte) (listsig.ID, error) {
	sig, err := s.verifier.signature(ctx, session)
	if err != nil {
		return listsig.ID{}, fmt.Errorf("fetch the signature: %w", err)
	}
	id, err := s.keys.Verify(list, sig)
	if err != nil {
		return listsig.ID{}, fmt.Errorf("the list's signature: %w", err)
	}
	return id, nil
}

func (v *verifier) signature(ctx context.Context, session *session) ([]byte, error) {
	resp, err := session.get(ctx, v.url, validators{})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is of no use
	if resp.StatusCode != http.StatusOK {
		return nil, statusOf(resp, v.url)
	}
	body, err := decoded(resp, listsig.MaxSignature)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(body, listsig.MaxSignature+1))
}

// accept returns why a list that was signed may not serve, or nil: one without
// serial, expiry and name could be replayed, frozen or swapped for another one
// that the same key has signed.
func (v *verifier) accept(h eklist.Header) error {
	switch {
	case !h.HasSerial || h.Expires.IsZero():
		return errors.New("a signed list needs serial and expires, to prevent replays: publish it with both")
	case h.Name != v.listID:
		return fmt.Errorf("the signed list is %.80q, not %q: its field list must be the configured list_id",
			h.Name, v.listID)
	}
	return nil
}
