package evict

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// startTimeout is how long evict waits for the first loads of the sources, as the plugin does.
const startTimeout = 10 * time.Second

// A site is the server's configuration and its sources, which follow what the server serves.
type site struct {
	name   string // of the file
	stdin  io.Reader
	loader *config.Loader
	log    *slog.Logger
	warn   func(string)

	content     []byte // of the configuration that is followed
	seen        []byte // of the file when it was last read
	previewer   *server.Previewer
	trustDomain spiffeid.TrustDomain // zero if the file does not name it
}

// open reads the configuration for the first time.
func (s *site) open(ctx context.Context) error {
	content, err := input.Read(s.name, s.stdin, cli.MaxConfig)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	s.seen = content
	return s.follow(ctx, content)
}

func (s *site) close() {
	if s.previewer != nil {
		s.previewer.Close()
	}
}

// follow follows a configuration from now on. If there is an error, the previous configuration stays.
func (s *site) follow(ctx context.Context, content []byte) error {
	c, err := s.loader.LoadFile(ctx, string(content))
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return fmt.Errorf("a server refuses this configuration: %w", problems)
	}
	if err != nil {
		return err
	}
	td := c.TrustDomain
	if td.IsZero() {
		c.TrustDomain = spiffeid.RequireTrustDomainFromString("trust-domain.invalid") // no ID is told to anybody
	}
	within, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	next, err := server.NewFollower(within, c, s.previewer, s.log)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		next.Close()
		return err
	}
	for _, w := range c.Warnings {
		s.warn(w)
	}
	s.close()
	s.previewer, s.content, s.trustDomain = next, content, td
	return nil
}

// errChanging says that the file has a new configuration, which is not followed yet.
var errChanging = errors.New("the configuration has just changed: it is followed once it has been left alone")

// reread follows the configuration in the file if it has changed, but only once two calls have read the
// same content: an editor may be writing it. It reports whether it follows a new configuration. The error
// says why it still follows the previous configuration: if it is errChanging, the server may run either;
// otherwise the server refuses the new configuration and goes on with the previous one.
func (s *site) reread(ctx context.Context) (changed bool, err error) {
	if s.name == "-" {
		return false, nil
	}
	content, err := input.Read(s.name, nil, cli.MaxConfig)
	if err != nil {
		return false, fmt.Errorf("read the configuration: %w", err)
	}
	settled := bytes.Equal(content, s.seen)
	s.seen = content
	switch {
	case bytes.Equal(content, s.content):
		return false, nil
	case !settled:
		return false, errChanging
	}
	if err := s.follow(ctx, content); err != nil {
		return false, err
	}
	return true, nil
}
