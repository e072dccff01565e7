package handover

import (
	"fmt"
	"net"
	"os"
)

// A Family identifies the plugins of one spire-server: processes that run as the same user and have the
// same parent, since spire-server starts each of its plugins itself.
type Family struct {
	user   int
	parent int
}

// Own returns the family of this process. Call it when the process starts, while spire-server is alive:
// an orphan gets another parent, which it shares with other orphans.
func Own() Family { return Family{os.Geteuid(), os.Getppid()} }

// check returns an error if the process at the other end of a connection is not in the family, or if
// spire-server has ended.
func (f Family) check(conn *net.UnixConn) error {
	if now := os.Getppid(); now != f.parent {
		return fmt.Errorf("spire-server, process %d, has ended", f.parent)
	}
	user, process, parent, err := peer(conn)
	switch {
	case err != nil:
		return fmt.Errorf("find out which process is at the other end of the socket: %w", err)
	case user != f.user:
		return fmt.Errorf("process %d at the other end of the socket runs as user %d, and this one as user %d: "+
			"run both plugins as the user of spire-server", process, user, f.user)
	case parent != f.parent:
		return fmt.Errorf("process %d at the other end of the socket is not a plugin of the same spire-server: "+
			"its parent is process %d, and this one's is %d; if plugin_cmd is a script, it must exec the plugin",
			process, parent, f.parent)
	}
	return nil
}
