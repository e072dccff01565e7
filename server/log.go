package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"unicode"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/metadata"
)

// maxLogged is the length of the longest text in a log line that the plugin did not write itself, in bytes.
const maxLogged = 4096

// clean makes a text safe to log: at most most bytes of it, in one line, and only printable characters.
func clean(s string, most int) string {
	if len(s) > most {
		s = s[:most] + "…"
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	if !strings.ContainsFunc(s, unprintable) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unprintable(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// peerHeader is the metadata in which SPIRE passes the agent's address on.
const peerHeader = "x-forwarded-client-ip"

// peer returns the agent's address as SPIRE sees it.
func peer(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, peerHeader)
	if len(values) == 0 || values[0] == "" {
		return "unknown"
	}
	if addr, err := netip.ParseAddr(values[0]); err == nil {
		return addr.String()
	}
	const most = 64
	return clean(values[0], most)
}

// logHandler lets the sources write to SPIRE's log.
type logHandler struct {
	log    hclog.Logger
	prefix string // before the names of attributes
}

var _ slog.Handler = (*logHandler)(nil)

func logLevel(l slog.Level) hclog.Level {
	switch {
	case l >= slog.LevelError:
		return hclog.Error
	case l >= slog.LevelWarn:
		return hclog.Warn
	case l >= slog.LevelInfo:
		return hclog.Info
	case l >= slog.LevelDebug:
		return hclog.Debug
	default:
		return hclog.Trace
	}
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool {
	return logLevel(l) >= h.log.GetLevel()
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	args := make([]any, 0, 2*r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		args = appendAttr(args, h.prefix, a)
		return true
	})
	h.log.Log(logLevel(r.Level), clean(r.Message, maxLogged), args...)
	return nil
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var args []any
	for _, a := range attrs {
		args = appendAttr(args, h.prefix, a)
	}
	return &logHandler{log: h.log.With(args...), prefix: h.prefix}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &logHandler{log: h.log, prefix: h.prefix + name + "."}
}

// appendAttr appends an attribute as hclog's key and value. The value is cleaned, since it may come from a file
// that a source has read.
func appendAttr(args []any, prefix string, a slog.Attr) []any {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindGroup:
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			args = appendAttr(args, prefix, inner)
		}
		return args
	case slog.KindString:
		return append(args, prefix+a.Key, clean(v.String(), maxLogged))
	case slog.KindAny:
		return append(args, prefix+a.Key, clean(fmt.Sprint(v.Any()), maxLogged))
	default:
		return append(args, prefix+a.Key, v.Any())
	}
}
