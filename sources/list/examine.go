package list

import (
	"context"
	"errors"
)

// Examine makes l read what a running server has, without disturbing the server: it reads the
// server's cache, whoever owns the file, and never writes it. If the origin needs the network and
// network is false, only the cache is used. Examine must be called before the first Load.
func (l *List[T]) Examine(network bool) {
	if c := l.cfg.Cache; c != nil {
		examined := *c
		examined.readOnly, examined.file.AnyOwner = true, true
		l.cfg.Cache = &examined
	}
	if l.cfg.Remote && !network {
		l.origin = offline{l.origin}
	}
}

// offline is an origin that is not asked.
type offline struct{ Origin }

var errOffline = errors.New("the network was not asked")

// Read implements Origin.
func (offline) Read(context.Context, string) (Copy, error) { return Copy{}, errOffline }
