package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// callTimeout is how long a hand-over may take.
	callTimeout = 5 * time.Second
	// maxCalls is how many hand-overs are under way at once. Further hand-overs wait, so that a
	// composer that hangs does not cost a file descriptor for each attestation.
	maxCalls = 16
)

// A Client hands keys over. It is safe for concurrent use.
type Client struct {
	path   string
	family Family
	calls  chan struct{} // has an element for each call under way
}

// NewClient returns a client of the composer that listens on the socket at path. It does not connect yet.
func NewClient(path string, family Family) *Client {
	return &Client{path, family, make(chan struct{}, maxCalls)}
}

// HandOver hands over the key for an ID. If it returns nil, the composer has taken the key. It
// returns an error if the composer does not answer within 5 seconds.
func (c *Client) HandOver(ctx context.Context, id spiffeid.ID, k Key) error {
	if !Guards(id) {
		return fmt.Errorf("the composer does not decide about %q", id)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case c.calls <- struct{}{}:
		defer func() { <-c.calls }()
	case <-ctx.Done():
		return fmt.Errorf("%d others wait for the composer (%w): %s", maxCalls, ctx.Err(), hangs)
	}
	if err := c.call(ctx, id.String(), k); err != nil {
		return fmt.Errorf("hand the key over at %q: %w", c.path, err)
	}
	return nil
}

// missing is the remedy if no composer answers.
const missing = `add CredentialComposer "tpm" with the same plugin_cmd and with this socket to the ` +
	`configuration of SPIRE's server, and restart it; if it is there, "Socket gone" in the server's log says why, or ` +
	`its process has ended: restart the server`

// hangs is the remedy if the composer accepts connections and does not answer.
const hangs = "if it goes on, restart spire-server"

func (c *Client) call(ctx context.Context, id string, k Key) error {
	var dialer net.Dialer
	opened, err := dialer.DialContext(ctx, "unix", c.path)
	if err != nil {
		return fmt.Errorf("no composer answers (%w): %s", cause(err), missing)
	}
	defer func() { _ = opened.Close() }()
	conn, ok := opened.(*net.UnixConn)
	if !ok {
		return errors.New("it is no Unix socket")
	}
	if err := c.family.check(conn); err != nil {
		return err
	}
	// When ctx ends, a read or write that is under way ends too.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	if err := writeRequest(conn, id, k); err != nil {
		return fmt.Errorf("write the request: %w", cause(err))
	}
	err = readReply(conn)
	switch {
	case err == nil, errors.Is(err, errRefused):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the composer has said nothing (%w): %s", cause(err), hangs)
	}
	return fmt.Errorf(`%w: "Hand-over refused" in the server's log says why; if it is not there, restart spire-server`,
		cause(err))
}

// cause returns an error without the path of the socket, which HandOver adds.
func cause(err error) error {
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		return sys
	}
	return err
}
