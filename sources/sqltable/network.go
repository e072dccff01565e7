package sqltable

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// keepAlive finds out about a peer that has gone within half a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

// dial opens a connection of which no answer may be too long.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := dialerTo(address).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn}, nil
}

// dialerTo returns what connects to an address.
func dialerTo(address string) *net.Dialer {
	dialer := &net.Dialer{KeepAliveConfig: keepAlive}
	if host, _, err := net.SplitHostPort(address); err == nil && host == localName {
		dialer.ControlContext = onlyLoopback
	}
	return dialer
}

// localName is the name of this machine (RFC 6761, 6.3). It needs no TLS, but DNS may
// answer for it, so it is looked at where a connection to it leads.
const localName = "localhost"

// lookUp resolves a host as a driver is to do it: localName is left to dial.
func lookUp(ctx context.Context, host string) ([]string, error) {
	if host == localName {
		return []string{host}, nil
	}
	return net.DefaultResolver.LookupHost(ctx, host)
}

// onlyLoopback is called by a dialer with the address that it is about to connect to,
// after it has resolved localName.
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

// maxAnswer is how much the database may send before it is asked again, in
// bytes: far more than one row, and its certificates.
const maxAnswer = 1 << 20

// A boundedConn ends with an error where an answer is too long.
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

// SyscallConn lets the driver of MySQL see whether an idle connection is dead.
func (c *boundedConn) SyscallConn() (syscall.RawConn, error) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, io.ErrUnexpectedEOF
	}
	return conn.SyscallConn()
}
