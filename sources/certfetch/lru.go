package certfetch

import "container/list"

// lru is a map of bounded size: what was used least recently goes first. The
// zero value is not ready.
type lru[V any] struct {
	byName map[name]*list.Element
	order  *list.List // of lruItem[V], the last used in front
	bytes  int64
	// Limits; no limit where maxBytes is zero.
	maxItems int
	maxBytes int64
	size     func(name, V) int64
	gone     func(name) // is told of what had to go
}

type lruItem[V any] struct {
	name  name
	value V
}

func newLRU[V any](maxItems int, maxBytes int64, size func(name, V) int64, gone func(name)) *lru[V] {
	return &lru[V]{
		byName: map[name]*list.Element{}, order: list.New(),
		maxItems: maxItems, maxBytes: maxBytes, size: size, gone: gone,
	}
}

// get returns what is kept by a name, and counts that as its use.
func (l *lru[V]) get(n name) (v V, ok bool) {
	e := l.byName[n]
	if e == nil {
		return v, false
	}
	l.order.MoveToFront(e)
	return itemOf[V](e).value, true
}

// peek returns what is kept by a name, and does not count that as a use.
func (l *lru[V]) peek(n name) (v V) {
	if e := l.byName[n]; e != nil {
		return itemOf[V](e).value
	}
	return v
}

func itemOf[V any](e *list.Element) *lruItem[V] {
	item, ok := e.Value.(*lruItem[V])
	if !ok {
		panic("an element of another list")
	}
	return item
}

// put keeps v by a name, in place of what was.
func (l *lru[V]) put(n name, v V) {
	l.drop(n)
	l.byName[n] = l.order.PushFront(&lruItem[V]{n, v})
	l.bytes += l.size(n, v)
	for len(l.byName) > l.maxItems || l.maxBytes > 0 && l.bytes > l.maxBytes {
		last := itemOf[V](l.order.Back()).name
		l.drop(last)
		l.gone(last)
	}
}

// drop removes what is kept by a name.
func (l *lru[V]) drop(n name) {
	if e := l.byName[n]; e != nil {
		l.bytes -= l.size(n, itemOf[V](e).value)
		l.order.Remove(e)
		delete(l.byName, n)
	}
}

// each calls f with all that is kept, the last used first.
func (l *lru[V]) each(f func(name, V)) {
	for e := l.order.Front(); e != nil; e = e.Next() {
		item := itemOf[V](e)
		f(item.name, item.value)
	}
}
