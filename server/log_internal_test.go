package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/metadata"
)

// What an agent or a list writes must not break out of its line, clear a
// terminal or fill a disk.
func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü":         "plain ü",
		"a\nb\x1b[2Jc":    "a\uFFFDb\uFFFD[2Jc",
		"a\u202eb\u0085c": "a\uFFFDb\uFFFDc",
		"a\xffb":          "a\uFFFDb",
		"0123456789abc":   "0123456789…",
	} {
		if got := clean(in, 10); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

// The address comes as metadata, which anybody who reaches the plugin's socket could forge.
func TestPeer(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8::1": "2001:db8::1", "": "unknown", "x\ny": "x\uFFFDy",
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(peerHeader, in))
		if got := peer(ctx); got != want {
			t.Errorf("peer of %q = %q, want %q", in, got, want)
		}
	}
	if got := peer(t.Context()); got != "unknown" {
		t.Errorf("peer of nothing = %q", got)
	}
}

// The sources write by slog; their lines must arrive whole, at their level.
func TestLogHandler(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(&logHandler{log: hclog.New(&hclog.LoggerOptions{Output: &buf, JSONFormat: true})})
	log.With("source", "factory").WithGroup("").WithGroup("g").With("a", 1).Warn("torn\nlist",
		"err", errors.New("line 3:\x1b bad"), slog.Group("place", "line", 3), slog.Group("", "flat", true))
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"@message": "torn\uFFFDlist", "@level": "warn", "source": "factory", "g.a": "1",
		"g.err": "line 3:\uFFFD bad", "g.place.line": "3", "g.flat": "true",
	} {
		if got := fmt.Sprint(line[key]); got != want {
			t.Errorf("%s is %q, want %q in %v", key, got, want, line)
		}
	}
	for level, want := range map[slog.Level]hclog.Level{
		slog.LevelDebug - 4: hclog.Trace, slog.LevelDebug: hclog.Debug, slog.LevelInfo: hclog.Info,
		slog.LevelWarn: hclog.Warn, slog.LevelError: hclog.Error, slog.LevelError + 4: hclog.Error,
	} {
		if got := logLevel(level); got != want {
			t.Errorf("logLevel(%v) = %v, want %v", level, got, want)
		}
	}
	quiet := &logHandler{log: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn})}
	if quiet.Enabled(context.Background(), slog.LevelInfo) || !quiet.Enabled(context.Background(), slog.LevelError) {
		t.Error("the level of SPIRE's log is not obeyed")
	}
}
