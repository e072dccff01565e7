package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

const (
	// requestTimeout limits a request, from the connection to the last byte and including its
	// second attempt.
	requestTimeout = 10 * time.Second
	// maxPerHost is the maximum number of connections to a host and port at a time.
	maxPerHost = 4
	// maxRetries is how often a request is repeated if the connection or the server has failed, and
	// retryPause the pause before that.
	maxRetries = 1
	retryPause = 250 * time.Millisecond
	// maxRedirects is the maximum number of redirects that are followed.
	maxRedirects = 3
)

// maxBody is the maximum size of a body in bytes.
var maxBody = map[Kind]int64{Issuer: 256 << 10, EKCertificate: 64 << 10, CRL: 4 << 20}

// A badAnswerError is an answer that would not be different if it were requested again soon.
type badAnswerError struct{ problem string }

func (e *badAnswerError) Error() string { return e.problem }

func badAnswer(format string, args ...any) error {
	return &badAnswerError{fmt.Sprintf(format, args...)}
}

var errRedirect = errors.New("redirect not followed")

// bare returns an error without the URL, which the caller adds.
func bare(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// ask makes a request and returns the body of the answer.
func (f *Fetcher) ask(ctx context.Context, kind Kind, t target) ([]byte, error) {
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodGet, t.url.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "spire-tpm-attestor")
	req.Header.Set("Accept", "*/*")
	resp, err := f.client(t).Do(req)
	if resp != nil {
		defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is not needed
	}
	if err != nil {
		return nil, err
	}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		return nil, ErrNotFound
	case transient(code):
		return nil, fmt.Errorf("the server answered %d %s", code, http.StatusText(code))
	case code != http.StatusOK:
		return nil, badAnswer("the server answered %d %s", code, http.StatusText(code))
	}
	return readBody(resp, maxBody[kind.base()])
}

// readBody reads a body of at most limit bytes.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, badAnswer("the answer is encoded as %.50q, which was not asked for", coding)
	}
	if resp.ContentLength > limit {
		return nil, badAnswer("the answer has %d bytes, more than %d", resp.ContentLength, limit)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case int64(len(body)) > limit:
		return nil, badAnswer("the answer has more than %d bytes", limit)
	case len(body) == 0:
		return nil, badAnswer("the answer is empty")
	}
	return body, nil
}

// client returns a client that makes the request for a target and follows its redirects.
func (f *Fetcher) client(t target) *retryablehttp.Client {
	transport := f.transport
	if t.own {
		transport = f.ownTransport
	}
	redirects := func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("%w: there were %d before", errRedirect, maxRedirects)
		}
		next, err := f.policy.redirected(target{via[len(via)-1].URL, t.own}, req.URL)
		if err != nil {
			return fmt.Errorf("%w: %w", errRedirect, err)
		}
		req.URL = next.url
		req.Header.Del("Referer")
		return nil
	}
	return &retryablehttp.Client{
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: redirects},
		RetryMax:     maxRetries,
		RetryWaitMin: f.retryPause,
		CheckRetry:   retryable,
		Backoff:      func(pause, _ time.Duration, _ int, _ *http.Response) time.Duration { return pause },
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
}

// transient reports whether a status means a temporary failure of the server.
func transient(code int) bool {
	return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests ||
		code == http.StatusRequestTimeout
}

// retryable reports whether a request is repeated. It is not if the target must not be asked, or if
// the server has asked for a pause.
func retryable(ctx context.Context, resp *http.Response, err error) (bool, error) {
	_, forbidden := errors.AsType[*forbiddenError](err)
	if forbidden || errors.Is(err, errRedirect) || resp != nil && resp.StatusCode == http.StatusTooManyRequests {
		return false, err
	}
	return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
}
