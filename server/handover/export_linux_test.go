package handover

import (
	"io"
	"net"
)

// WriteRequest and ReadRequest are for tests of the form of a request.
func WriteRequest(w io.Writer, id string, k Key) error { return writeRequest(w, id, k) }
func ReadRequest(r io.Reader) (string, Key, error)     { return readRequest(r) }
func ReadReply(r io.Reader) error                      { return readReply(r) }

// MaxConns is how many connections are served at once, and MaxCalls how many a client has.
const (
	MaxConns = maxConns
	MaxCalls = maxCalls
)

// Peer returns who is at the other end of a connection.
func Peer(conn *net.UnixConn) (user, process, parent int, err error) { return peer(conn) }

// FamilyOf is the family of a process that a parent has started.
func FamilyOf(user, parent int) Family { return Family{user, parent} }
