// Package guard keeps a panic in one call from ending the plugin's process. SPIRE does not restart a plugin that
// has died, so one bad message would keep a whole fleet from attesting.
package guard

import (
	"runtime/debug"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Recover must be deferred. It logs a panic of the calling function and, unless err is nil, sets *err to a status
// with the code Internal. during says in the log what the function was doing, and args are further fields.
func Recover(log hclog.Logger, err *error, during string, args ...any) {
	r := recover()
	if r == nil {
		return
	}
	log.Error("Panic", append(args, "during", during, "panic", r, "stack", string(debug.Stack()))...)
	if err != nil {
		*err = status.Error(codes.Internal, "internal error, see the server's log")
	}
}
