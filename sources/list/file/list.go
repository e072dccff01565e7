package file

import (
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// NewList checks the configuration and returns the list in the file, with its origin.
// maxStaleness is how long the last good list serves while the file is missing, cannot be
// read or is no good list (list.Config.MaxStaleness): a file that can be read is never stale,
// however old it is. NewList touches no file. The error is of all that is wrong, a
// sources.FieldError each.
func NewList[T list.Content[T]](
	parse list.Parse[T], cfg Config, maxStaleness time.Duration,
) (*list.List[T], *Origin, error) {
	origin, err := New(cfg)
	l, more := list.New(parse, origin, list.Config{
		What:  fmt.Sprintf("list %q", cfg.Path),
		Every: cfg.Every, MaxStaleness: maxStaleness, Now: cfg.Now,
	})
	if err := errors.Join(err, more); err != nil {
		return nil, nil, err
	}
	return l, origin, nil
}
