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

// A watch reports changes on the route to a file. A change that it misses is found later by polling
// the file.
type watch interface {
	// changed returns a channel that receives a value after a change. Several changes may cause
	// only one value.
	changed() <-chan struct{}
	// broken reports whether one of the folders has been moved or removed, so that a new watch is
	// needed to see further changes.
	broken() bool
	// close ends the watch. It returns when everything that the watch has started has ended.
	close()
}

// A watchFunc watches the folders of a route. If it returns an error, the watch that it returns
// covers as much as can be watched, or is nil.
type watchFunc func(route) (watch, error)

// A route is everything that determines which file a path leads to.
type route struct {
	// folders are the folders in which a name on the route is looked up, by path. A name in them
	// may be given to another file.
	folders map[string]folder
	// names are the full paths of those names.
	names map[string]bool
}

// A folder identifies a folder.
type folder struct{ device, inode uint64 }

func (r route) same(other route) bool {
	return maps.Equal(r.folders, other.folders) && maps.Equal(r.names, other.names)
}

// maxLinks is the maximum number of symbolic links in a path, the same as the kernel's.
const maxLinks = 40

// routeTo returns the route to the file at a path: the folder that holds the file, and each folder
// that holds a symbolic link on the way. If something on the way is missing, the route ends there.
func routeTo(path string) (route, error) {
	if !filepath.IsAbs(path) {
		here, err := os.Getwd()
		if err != nil {
			return route{}, err
		}
		path = here + "/" + path // not cleaned: ".." is relative to the target of a symbolic link
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

// parts returns the elements of a path.
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

// An inotifyWatch watches folders with inotify(7). It never watches the file itself: a file that is
// renamed over it is another file.
type inotifyWatch struct {
	watcher *fsnotify.Watcher
	route   route
	signal  chan struct{}
	gone    atomic.Bool
	reading sync.WaitGroup
}

// inotify is the watchFunc that uses inotify(7).
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

// advice says which limits to raise if no more watches can be made.
const advice = " (the limits are sysctl fs.inotify.max_user_instances and fs.inotify.max_user_watches)"

// read signals the events that the kernel reports, until the watch is closed.
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
				w.tell() // events were lost, and any of them may have concerned the file
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
	_ = w.watcher.Close() // closing cannot lose any data
	w.reading.Wait()
}
