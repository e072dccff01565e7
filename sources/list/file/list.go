package file

import (
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// NewList checks the configuration and returns the list in the file, and its origin. maxStaleness
// is how long the last good list is served while the file is missing, cannot be read, or is not a
// good list (list.Config.MaxStaleness). A file that can be read is never stale, however old it is.
// NewList touches no file. If the configuration is invalid, it returns the joined errors, one
// sources.FieldError for each problem.
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
