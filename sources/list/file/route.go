package file

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"
)

// A watch tells that something has changed on the way to a file. A change that it misses
// is found later, by looking at the file.
type watch interface {
	// changed receives after a change; several may count as one.
	changed() <-chan struct{}
	// broken reports whether one of the folders has been moved or removed, so
	// that it takes a new watch to see more.
	broken() bool
	// close ends it, and returns when nothing of it is left.
	close()
}

// A watchFunc watches the folders of a route. If there is an error, the watch that it
// returns watches as much as can be watched, or is nil.
type watchFunc func(route) (watch, error)

// A route is all that decides which file a path leads to.
type route struct {
	// folders are the folders in which a name on the way is looked up, by path: such a
	// name may be given to another file.
	folders map[string]folder
	// names are the paths of these names.
	names map[string]bool
}

// A folder identifies a folder.
type folder struct{ device, inode uint64 }

func (r route) same(other route) bool {
	return maps.Equal(r.folders, other.folders) && maps.Equal(r.names, other.names)
}

// maxLinks is how many links there may be in a path, as for the kernel.
const maxLinks = 40

// routeTo returns the route to the file at a path: the folder that holds the file, and each
// folder that holds a link on the way. If something is missing on the way, the route ends
// there.
func routeTo(path string) (route, error) {
	if !filepath.IsAbs(path) {
		here, err := os.Getwd()
		if err != nil {
			return route{}, err
		}
		path = here + "/" + path // not cleaned: ".." leads out of what a link leads to
	}
	r := route{folders: map[string]folder{}, names: map[string]bool{}}
	at, rest := "/", parts(path)
	for links := 0; len(rest) > 0 && links <= maxLinks; {
		name := filepath.Join(at, rest[0]) // at has no links in it
		rest = rest[1:]
		info, err := os.Lstat(name)
		isLink := err == nil && info.Mode()&fs.ModeSymlink != 0
		if err == nil && !isLink && len(rest) > 0 {
			at = name
			continue
		}
		if err := r.add(name); err != nil {
			return r, err
		}
		if !isLink {
			break
		}
		target, err := os.Readlink(name)
		if err != nil {
			return r, err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(parts(target), rest...)
		links++
	}
	return r, nil
}

// parts returns the names that a path is made of.
func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}

// add adds a name and the folder that it is in.
func (r route) add(name string) error {
	r.names[name] = true
	path := filepath.Dir(name)
	id, err := lookAt(path)
	if err != nil {
		return err
	}
	r.folders[path] = folder{id.device, id.inode}
	return nil
}

// An inotifyWatch watches folders by the kernel (inotify(7)), and never the file: a file
// that is renamed over it is another file.
type inotifyWatch struct {
	watcher *fsnotify.Watcher
	route   route
	signal  chan struct{}
	gone    atomic.Bool
	reading sync.WaitGroup
}

// inotify is the watchFunc of the kernel.
func inotify(r route) (watch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch for changes: %w%s", err, advice)
	}
	var failed error
	for path := range r.folders {
		if err := watcher.Add(path); err != nil && failed == nil {
			failed = fmt.Errorf("watch folder %q: %w%s", path, err, advice)
		}
	}
	w := &inotifyWatch{watcher: watcher, route: r, signal: make(chan struct{}, 1)}
	w.reading.Go(w.read)
	return w, failed
}

// advice is what to do if the kernel has no watches left.
const advice = " (the limits are sysctl fs.inotify.max_user_instances and fs.inotify.max_user_watches)"

// read passes on what the kernel tells, until the watch is closed.
func (w *inotifyWatch) read() {
	events, errs := w.watcher.Events, w.watcher.Errors
	for events != nil || errs != nil {
		select {
		case event, ok := <-events:
			if !ok {
				events = nil
			} else if w.concerns(event) {
				w.tell()
			}
		case _, ok := <-errs:
			if !ok {
				errs = nil
			} else {
				w.tell() // events were lost: it may be any
			}
		}
	}
}

// concerns reports whether an event may be about the file.
func (w *inotifyWatch) concerns(event fsnotify.Event) bool {
	name := filepath.Clean(event.Name)
	if _, ok := w.route.folders[name]; ok {
		if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
			w.gone.Store(true)
		}
		return true
	}
	return w.route.names[name]
}

func (w *inotifyWatch) tell() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

func (w *inotifyWatch) changed() <-chan struct{} { return w.signal }
func (w *inotifyWatch) broken() bool             { return w.gone.Load() }

func (w *inotifyWatch) close() {
	_ = w.watcher.Close() // it has nothing that could be lost
	w.reading.Wait()
}
