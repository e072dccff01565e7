package certfetch

// lru is a map of bounded size: what was used least recently goes first. The
// zero value is not ready.
type lru[V any] struct {
	byName         map[name]*lruItem[V]
	newest, oldest *lruItem[V] // by their last use; nil where nothing is kept
	bytes          int64
	// Limits; no limit where maxBytes is zero.
	maxItems int
	maxBytes int64
	size     func(name, V) int64
	gone     func() // is told when something had to go
}

type lruItem[V any] struct {
	name         name
	value        V
	newer, older *lruItem[V]
}

func newLRU[V any](maxItems int, maxBytes int64, size func(name, V) int64, gone func()) *lru[V] {
	return &lru[V]{byName: map[name]*lruItem[V]{}, maxItems: maxItems, maxBytes: maxBytes, size: size, gone: gone}
}

// get returns what is kept by a name, and counts that as its use.
func (l *lru[V]) get(n name) (v V, ok bool) {
	item := l.byName[n]
	if item == nil {
		return v, false
	}
	l.unlink(item)
	l.link(item)
	return item.value, true
}

// peek returns what is kept by a name, and does not count that as a use.
func (l *lru[V]) peek(n name) (v V) {
	if item := l.byName[n]; item != nil {
		return item.value
	}
	return v
}

// put keeps v by a name, in place of what was.
func (l *lru[V]) put(n name, v V) {
	l.drop(n)
	item := &lruItem[V]{name: n, value: v}
	l.byName[n] = item
	l.link(item)
	l.bytes += l.size(n, v)
	for l.oldest != nil && (len(l.byName) > l.maxItems || l.maxBytes > 0 && l.bytes > l.maxBytes) {
		last := l.oldest.name
		l.drop(last)
		l.gone()
	}
}

// drop removes what is kept by a name.
func (l *lru[V]) drop(n name) {
	if item := l.byName[n]; item != nil {
		l.bytes -= l.size(n, item.value)
		l.unlink(item)
		delete(l.byName, n)
	}
}

// link makes an item the one that was used last.
func (l *lru[V]) link(item *lruItem[V]) {
	item.newer, item.older = nil, l.newest
	if l.newest != nil {
		l.newest.newer = item
	} else {
		l.oldest = item
	}
	l.newest = item
}

// unlink takes an item out of the order.
func (l *lru[V]) unlink(item *lruItem[V]) {
	if item.newer != nil {
		item.newer.older = item.older
	} else {
		l.newest = item.older
	}
	if item.older != nil {
		item.older.newer = item.newer
	} else {
		l.oldest = item.newer
	}
}

// each calls f with all that is kept, the last used first.
func (l *lru[V]) each(f func(name, V)) {
	for item := l.newest; item != nil; item = item.older {
		f(item.name, item.value)
	}
}
