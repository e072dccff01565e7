package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

const (
	// maxRetries is the maximum number of times that a request is repeated within the timeout of
	// the attempt.
	maxRetries = 2
	// retryPause is the default of Origin.retryPause.
	retryPause = 250 * time.Millisecond
)

// A session is one attempt with the current credentials.
type session struct {
	client *retryablehttp.Client
	token  string
	// clientFault says that the client certificate is not valid now, or is empty.
	clientFault string
	now         func() time.Time
}

// open reads the credentials.
func (o *Origin) open(ctx context.Context) (*session, error) {
	token, err := readToken(o.cfg.BearerTokenPath)
	if err != nil {
		return nil, err
	}
	transport, err := o.transport(ctx)
	if err != nil {
		return nil, err
	}
	return &session{token: token, now: o.cfg.Now, clientFault: o.clientFault(transport), client: &retryablehttp.Client{
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: o.checkRedirect},
		RetryMax:     maxRetries,
		CheckRetry:   retryable,
		RetryWaitMin: o.retryPause,
		Backoff:      backoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}}, nil
}

// get makes a request, and repeats it a few times if that may help. The caller must close the body
// of the answer.
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

// retryable reports whether a request is repeated: it is if the connection failed, or if the server
// is overloaded and does not say for how long. It is not if a person must fix something.
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

// backoff doubles the pause each time. It ignores Retry-After: a request to which the server
// answered with that is not repeated.
func backoff(first, _ time.Duration, before int, _ *http.Response) time.Duration {
	return first << before
}
