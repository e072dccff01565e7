package evict

import (
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

	followed    *config.File // the configuration that is followed, with the content of plugin_data_file
	seen        *config.File // the configuration when it was last read
	previewer   *server.Previewer
	trustDomain spiffeid.TrustDomain // zero if the file does not name it
}

// open reads the configuration for the first time.
func (s *site) open(ctx context.Context) error {
	var err error
	if s.seen, err = s.read(ctx); err != nil {
		return err
	}
	return s.follow(ctx)
}

// read reads the configuration, without following it.
func (s *site) read(ctx context.Context) (*config.File, error) {
	content, err := input.Read(s.name, s.stdin, cli.MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return s.loader.Open(ctx, string(content)), nil
}

func (s *site) close() {
	if s.previewer != nil {
		s.previewer.Close()
	}
}

// follow follows the configuration in s.seen from now on. If there is an error, the previous configuration stays.
func (s *site) follow(ctx context.Context) error {
	c, err := s.seen.Load(ctx)
	if problems, ok := errors.AsType[config.Problems](err); ok {
		return fmt.Errorf("the configuration does not work: %w", problems)
	}
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	td := c.TrustDomain
	if td.IsZero() {
		c.TrustDomain = spiffeid.RequireTrustDomainFromString("trust-domain.invalid") // evict uses no ID with it
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
	s.previewer, s.followed, s.trustDomain = next, s.seen, td
	return nil
}

// errChanging says that there is a new configuration, which is not followed yet.
var errChanging = errors.New("the configuration has just changed: it is followed once it has been left alone")

// reread follows the configuration if it has changed, in its file or in those of plugin_data_file, but only once
// two calls have read the same content: an editor may be writing it. It reports whether it follows a new
// configuration. The error says why it still follows the previous configuration: if it is errChanging, the server
// may run either, even if the files are again as before; otherwise the server refuses the new configuration and goes
// on with the previous one.
func (s *site) reread(ctx context.Context) (changed bool, err error) {
	if s.name == "-" {
		return false, nil
	}
	now, err := s.read(ctx)
	if err != nil {
		return false, err
	}
	settled := now.Same(s.seen)
	s.seen = now
	switch {
	case !settled:
		return false, errChanging
	case now.Same(s.followed):
		return false, nil
	}
	if err := s.follow(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// edited reports whether the configuration differs from the one that was last read.
func (s *site) edited(ctx context.Context) bool {
	if s.name == "-" { // nobody edits it
		return false
	}
	now, err := s.read(ctx)
	return err == nil && !now.Same(s.seen)
}
