package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

const (
	// maxLooks is how often the way to the file is looked at in a row while it changes.
	maxLooks = 3
	// lookPause is the pause before the next such row.
	lookPause = 100 * time.Millisecond
)

// Watch calls changed when something has changed on the way to the file, as
// sources.Watcher asks. Every Config.Every it looks whether the way is still the same.
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

// A follower has the watch that fits the way to the file.
type follower struct {
	origin *Origin
	watch  watch // nil if there is none
	route  route // that is watched
	whole  bool  // all of it
}

// changed is nil if nothing tells of changes.
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

// settle makes the watch fit the way to the file. It reports false if the way changed at
// each look: then nobody knows whether the watch tells of the next change.
func (f *follower) settle(changed func()) bool {
	for range maxLooks {
		renewed, err := f.update()
		if renewed {
			// A new watch does not tell of changes before it was in place. So the file is
			// loaded again, and the way is looked at again.
			changed()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // a folder was removed while it was looked at
		case !renewed, err != nil: // it fits, or there are no watches left
			return true
		}
	}
	return false
}

// update makes a new watch if the way to the file has changed, or if the last watch is
// broken or does not watch all of the way. It reports whether it has made a watch. The error
// says why not all of the way is watched.
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

// An attempt is an attempt to watch the way to the file.
type attempt struct {
	route route
	watch watch // nil if the watch before will do, and if there can be none
	err   error // why not all can be watched
}

// follow watches the way to the file, unless the whole of it is watched already.
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
