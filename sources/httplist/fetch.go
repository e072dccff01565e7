package httplist

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listsig"
)

const (
	// maxRetries is how often a request is made again at most, within the
	// timeout of the attempt.
	maxRetries = 2
	// retryPause is between the first two requests.
	retryPause = 250 * time.Millisecond
)

// An answer is what the server says of the list: that it is this one, or where
// list is nil, that it is still the one that the request named.
type answer struct {
	list       *eklist.Snapshot
	validators validators
	// at is when the server has answered.
	at   time.Time
	size int64      // of the list in bytes, decoded
	key  listsig.ID // that has signed it; zero where lists are not signed
}

// A session is one attempt, with the credentials of this moment.
type session struct {
	client *retryablehttp.Client
	token  string
	// clientFault says that the client certificate is not valid now, or is empty.
	clientFault string
	now         func() time.Time
}

// open reads the credentials.
func (s *Source) open(ctx context.Context) (*session, error) {
	token, err := s.token()
	if err != nil {
		return nil, err
	}
	transport, err := s.transport(ctx)
	if err != nil {
		return nil, err
	}
	return &session{token: token, now: s.cfg.Now, clientFault: s.clientFault(transport), client: &retryablehttp.Client{
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: s.checkRedirect},
		RetryMax:     maxRetries,
		CheckRetry:   retryable,
		RetryWaitMin: s.retryPause,
		Backoff:      backoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}}, nil
}

// fetch asks the server for the list, unless it is still the one that serves.
func (s *Source) fetch(ctx context.Context) (*answer, error) {
	session, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	held := s.held()
	resp, err := session.get(ctx, s.url, held)
	if err != nil {
		return nil, session.withClientFault(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is of no use
	a := &answer{at: s.cfg.Now().Round(0)}
	switch {
	case resp.StatusCode == http.StatusNotModified && !held.empty():
		return a, held.confirmedBy(resp.Header)
	case resp.StatusCode != http.StatusOK:
		return nil, session.withClientFault(statusOf(resp, s.url))
	}
	a.validators = validatorsOf(resp.Header)
	return a, s.read(ctx, session, resp, a)
}

// held returns what the request names as the list that is there already. A signed
// list that this process has not verified itself is asked for anew, and so is one that
// another key than the last in the file has signed: it may have been signed anew
// without a change, which the validators of the list alone do not show, and must not
// be lost when the other key is taken out.
func (s *Source) held() validators {
	st := s.state.Load()
	switch {
	case st == nil, s.unconditional:
		return validators{}
	case s.verifier != nil && (!st.here || st.key != s.keys[len(s.keys)-1].ID()):
		return validators{}
	}
	return st.validators
}

// read reads the list in an answer.
func (s *Source) read(ctx context.Context, session *session, resp *http.Response, a *answer) error {
	body, err := decoded(resp, s.cfg.MaxBytes)
	if err != nil {
		return err
	}
	counted := &counter{r: body}
	defer func() { a.size = counted.n }()
	if s.verifier != nil {
		a.list, a.key, err = s.readSigned(ctx, session, counted)
		return err
	}
	var size int64
	switch st := s.state.Load(); {
	case resp.ContentLength > 0 && body == resp.Body:
		size = resp.ContentLength
	case st != nil:
		size = st.size
	}
	a.list, err = parse(counted, s.cfg.MaxBytes, size)
	return err
}

// readSigned reads a list, and its signature beside it. It returns the ID of the key
// that has signed.
func (s *Source) readSigned(
	ctx context.Context, session *session, body io.Reader,
) (*eklist.Snapshot, listsig.ID, error) {
	data, err := io.ReadAll(io.LimitReader(body, s.cfg.MaxBytes+1))
	switch {
	case err != nil:
		return nil, listsig.ID{}, fmt.Errorf("read the list: %w", err)
	case int64(len(data)) > s.cfg.MaxBytes:
		return nil, listsig.ID{}, fmt.Errorf("%w: more than %d bytes", eklist.ErrTooLong, s.cfg.MaxBytes)
	}
	key, err := s.verify(ctx, session, data)
	if err != nil {
		return nil, listsig.ID{}, err
	}
	list, err := parse(bytes.NewReader(data), s.cfg.MaxBytes, int64(len(data)))
	if err != nil {
		return nil, listsig.ID{}, err
	}
	return list, key, s.verifier.accept(list.Header())
}

// get makes one request, and few more where it is worth it. The caller closes
// the answer's body.
func (s *session) get(ctx context.Context, u *url.URL, held validators) (*http.Response, error) {
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", shown(u), bare(err))
	}
	req.Header.Set("User-Agent", "spire-tpm-attestor")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Encoding", "gzip")
	if s.token != "" {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	held.ask(req.Header)
	resp, err := s.client.Do(req)
	if err != nil {
		if resp != nil {
			_ = resp.Body.Close() // the error says more
		}
		return nil, fmt.Errorf("ask %s: %w", shown(u), s.inWords(bare(err)))
	}
	return resp, nil
}

// parse reads a JSON list. The text form has no end that a cut would be missed
// by, so that it is refused here.
func parse(r io.Reader, maxBytes, size int64) (*eklist.Snapshot, error) {
	list, err := eklist.Parse(r, eklist.Options{MaxBytes: maxBytes, Size: size, JSON: true})
	if err != nil {
		return nil, fmt.Errorf("the list: %w", err)
	}
	return list, nil
}

// retryable decides whether a request is made again: where the connection failed,
// and where a server is overloaded and does not say for how long. What a person
// must mend is not tried again.
func retryable(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, cmp.Or(err, ctx.Err())
	}
	if err != nil {
		if errors.Is(err, errRedirect) || isProxyStatus(err) {
			return false, err
		}
		again, _ := retryablehttp.DefaultRetryPolicy(ctx, nil, err)
		if !again {
			return false, err
		}
		return true, nil
	}
	switch resp.StatusCode {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return retryAfter(resp.Header, time.Now()) == 0, nil
	}
	return false, nil
}

// backoff waits twice as long each time, whatever the server says: where it asks
// for patience, the request is not made again.
func backoff(first, _ time.Duration, before int, _ *http.Response) time.Duration {
	return first << before
}
