package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

const (
	// maxLooks is how often in a row the route is looked at while it keeps changing.
	maxLooks = 3
	// lookPause is the pause before the next such round.
	lookPause = 100 * time.Millisecond
)

// Watch calls changed when something has changed on the route to the file (see sources.Watcher).
// Every Config.Every it checks whether the route has changed.
func (o *Origin) Watch(ctx context.Context, changed func()) error {
	ticker := time.NewTicker(o.cfg.Every)
	defer ticker.Stop()
	f := follower{origin: o}
	defer f.stop()
	for {
		var again <-chan time.Time
		if !f.settle(changed) {
			again = time.After(lookPause)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.changed():
			changed()
		case <-again:
		case <-ticker.C:
		}
	}
}

// A follower keeps the watch in line with the current route to the file.
type follower struct {
	origin *Origin
	watch  watch // nil if there is none
	route  route // the route that is watched
	whole  bool  // whether all of the route is watched
}

// changed returns nil if there is no watch.
func (f *follower) changed() <-chan struct{} {
	if f.watch == nil {
		return nil
	}
	return f.watch.changed()
}

func (f *follower) stop() {
	if f.watch != nil {
		f.watch.close()
		f.watch = nil
	}
}

// settle makes the watch fit the current route. It returns false if the route changed at each look,
// so that the watch may miss the next change.
func (f *follower) settle(changed func()) bool {
	for range maxLooks {
		renewed, err := f.update()
		if renewed {
			// A new watch does not report changes made before it was in place. So the file is
			// loaded again, and the route is looked at again.
			changed()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // a folder was removed while it was looked at
		case !renewed, err != nil: // the watch fits, or no more watches can be made
			return true
		}
	}
	return false
}

// update makes a new watch if the route has changed, or if the watch is broken or does not cover
// all of the route. It reports whether it has made one. The error says why not all of the route is
// watched.
func (f *follower) update() (renewed bool, err error) {
	made := f.origin.follow(f.route, f.watch != nil && f.whole && !f.watch.broken())
	if made.watch != nil {
		f.stop()
		f.watch, f.route, renewed = made.watch, made.route, true
	}
	f.whole = made.err == nil
	why := ""
	if made.err != nil {
		why = fmt.Sprintf("changes to list %q may be noticed only by polling every %v: %v",
			f.origin.cfg.Path, f.origin.cfg.Every, made.err)
	}
	f.origin.unwatched.Store(&why)
	return renewed, made.err
}

// An attempt is the result of trying to watch the route to the file.
type attempt struct {
	route route
	watch watch // nil if the previous watch still fits, or no watch can be made
	err   error // why not all of the route is watched
}

// follow watches the route to the file, unless all of the route is watched already.
func (o *Origin) follow(watched route, whole bool) attempt {
	r, err := routeTo(o.cfg.Path)
	if err != nil {
		return attempt{err: err}
	}
	if whole && r.same(watched) {
		return attempt{}
	}
	w, err := o.openWatch(r)
	return attempt{r, w, err}
}
