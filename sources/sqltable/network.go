package sqltable

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

// dial opens a connection that limits the length of answers.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := dialerTo(address).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn}, nil
}

// dialerTo returns the dialer for an address.
func dialerTo(address string) *net.Dialer {
	dialer := &net.Dialer{}
	if host, _, err := net.SplitHostPort(address); err == nil && host == localName {
		dialer.ControlContext = onlyLoopback
	}
	return dialer
}

// localName is the name of this machine (RFC 6761, 6.3). A connection to it needs no TLS. DNS may
// answer for the name, so the connection must lead to a loopback address.
const localName = "localhost"

// lookUp resolves a host name for a driver. It leaves localName to dial.
func lookUp(ctx context.Context, host string) ([]string, error) {
	if host == localName {
		return []string{host}, nil
	}
	return net.DefaultResolver.LookupHost(ctx, host)
}

// onlyLoopback refuses an address that is not loopback. A dialer calls it after it has
// resolved localName, before it connects.
func onlyLoopback(_ context.Context, _, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("connect to %q", address)
	}
	if !to.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("%s resolves to %v, which is not this machine: "+
			"write 127.0.0.1 or [::1] in the DSN, or mend /etc/hosts", localName, to.Addr())
	}
	return nil
}

// maxAnswer is the maximum number of bytes that the database may send in answer to one message. It
// is far more than a row, or the server's certificates, need.
const maxAnswer = 1 << 20

// A boundedConn returns an error if an answer is too long.
type boundedConn struct {
	net.Conn
	read atomic.Int64 // since the last Write
}

var errTooLong = fmt.Errorf("the database has sent more than %d bytes at once", maxAnswer)

func (c *boundedConn) Read(b []byte) (int, error) {
	left := maxAnswer - c.read.Load()
	if left <= 0 {
		return 0, errTooLong
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), left)])
	c.read.Add(int64(n))
	return n, err
}

func (c *boundedConn) Write(b []byte) (int, error) {
	c.read.Store(0)
	return c.Conn.Write(b)
}
