package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// byEvents returns a configuration with which changes are found by events, or else not within the
// time of a test.
func byEvents(path string) Config {
	return Config{Path: path, Every: 12 * time.Hour}
}

// However an operator changes a file, the change is followed at once, time after
// time: a watch that is dead after the first rename is not noticed before the
// second.
func TestFollows(t *testing.T) {
	for name, save := range map[string]func(tb testing.TB, path, content string){
		"written in place": write,
		"renamed over":     replace,
		"truncated, then written": func(tb testing.TB, path, content string) {
			must(tb, os.Truncate(path, 0))
			write(tb, path, content)
		},
		"an editor's backup and a new file": func(tb testing.TB, path, content string) {
			must(tb, os.Rename(path, path+"~"))
			write(tb, path, content)
		},
		"removed, and back": func(tb testing.TB, path, content string) {
			must(tb, os.Remove(path))
			write(tb, path, content)
		},
		"written in pieces": func(tb testing.TB, path, content string) {
			f, err := os.Create(path)
			must(tb, err)
			for _, c := range []byte(content) {
				_, err = f.Write([]byte{c})
				must(tb, err)
			}
			must(tb, f.Close())
		},
		"its folder swapped by renames": func(tb testing.TB, path, content string) {
			dir := filepath.Dir(path)
			must(tb, os.Mkdir(dir+".new", 0o700))
			write(tb, filepath.Join(dir+".new", filepath.Base(path)), content)
			must(tb, os.Rename(dir, fmt.Sprintf("%s.old%d", dir, time.Now().UnixNano())))
			must(tb, os.Rename(dir+".new", dir))
		},
		"its folder removed, and back": func(tb testing.TB, path, content string) {
			must(tb, os.RemoveAll(filepath.Dir(path)))
			must(tb, os.Mkdir(filepath.Dir(path), 0o700))
			write(tb, path, content)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "lists")
			must(t, os.Mkdir(dir, 0o700))
			path := filepath.Join(dir, "list")
			write(t, path, text(0))
			r := start(t, loaded(t, byEvents(path)))
			must(t, r.turn(t)) // now it watches
			for i := 1; i <= 4; i++ {
				save(t, path, text(i))
				r.until(t, i, "listed")
				want(t, r.Source, i-1, "not listed")
			}
			r.watched(t)
		})
	}
}

// A folder that is missing while its watch is made is watched when it is back: this happens when an
// operator renames a new folder to the place of the old one at the wrong moment.
func TestFolderAwayWhileWatched(t *testing.T) {
	for name, away := range map[string]int{"once": 1, "at each look of a row": maxLooks, "for two rows": 2 * maxLooks} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lists", "list")
			dir := filepath.Dir(path)
			must(t, os.Mkdir(dir, 0o700))
			write(t, path, text(0))
			s := loaded(t, byEvents(path))
			watched := make(chan struct{})
			whole := sync.OnceFunc(func() { close(watched) })
			s.openWatch = func(r route) (watch, error) {
				if away--; away < 0 {
					defer whole()
					return inotify(r)
				}
				must(t, os.Rename(dir, dir+".away"))
				defer func() { must(t, os.Rename(dir+".away", dir)) }()
				return inotify(r)
			}
			r := start(t, s)
			must(t, r.turn(t))
			select {
			case <-watched:
			case <-time.After(patience):
				t.Fatalf("the folder is not watched after %v", patience)
			}
			for i := 1; i <= 2; i++ {
				replace(t, path, text(i))
				r.until(t, i, "listed")
			}
		})
	}
}

// A configMap is a mounted ConfigMap, written as the kubelet writes it (package
// atomic of its volumes): the files of each version in a folder of their own, a
// link ..data to the one that counts, and links to the files through that.
type configMap struct {
	dir     string
	version int
}

// publish replaces all that the ConfigMap holds.
func (c *configMap) publish(tb testing.TB, files map[string]string) {
	tb.Helper()
	before, _ := os.Readlink(filepath.Join(c.dir, "..data"))
	c.version++
	name := fmt.Sprintf("..2026_11_23_10_00_00.%09d", c.version)
	must(tb, os.Mkdir(filepath.Join(c.dir, name), 0o755))
	for file, content := range files {
		write(tb, filepath.Join(c.dir, name, file), content)
	}
	must(tb, os.Symlink(name, filepath.Join(c.dir, "..data_tmp")))
	must(tb, os.Rename(filepath.Join(c.dir, "..data_tmp"), filepath.Join(c.dir, "..data")))
	for file := range files {
		if _, err := os.Lstat(filepath.Join(c.dir, file)); err != nil {
			must(tb, os.Symlink(filepath.Join("..data", file), filepath.Join(c.dir, file)))
		}
	}
	if before != "" {
		must(tb, os.RemoveAll(filepath.Join(c.dir, before)))
	}
}

// A ConfigMap that is updated again and again is followed each time, though no
// file in it is ever written to.
func TestFollowsConfigMap(t *testing.T) {
	c := configMap{dir: t.TempDir()}
	c.publish(t, map[string]string{"lab.txt": text(0), "other.txt": "x"})
	r := start(t, loaded(t, byEvents(filepath.Join(c.dir, "lab.txt"))))
	must(t, r.turn(t))
	for i := 1; i <= 6; i++ {
		c.publish(t, map[string]string{"lab.txt": text(i), "other.txt": "x"})
		r.until(t, i, "listed")
		want(t, r.Source, i-1, "not listed")
	}
}

// A file that is reached through links is followed at its target and at the links; other events in
// these folders cause nothing.
func TestFollowsLinks(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a", "b", "etc"} {
		must(t, os.Mkdir(filepath.Join(root, dir), 0o700))
	}
	write(t, filepath.Join(root, "a", "list"), text(1))
	write(t, filepath.Join(root, "b", "list"), text(2))
	must(t, os.Symlink("../a", filepath.Join(root, "etc", "current")))
	must(t, os.Symlink(filepath.Join(root, "etc", "current", "list"), filepath.Join(root, "link")))
	path := root + "/etc/../link"

	r := start(t, loaded(t, byEvents(path)))
	must(t, r.turn(t))
	replace(t, filepath.Join(root, "a", "list"), text(3)) // at its target
	r.until(t, 3, "listed")
	must(t, os.Symlink("../b", filepath.Join(root, "etc", "new"))) // a link on the way
	must(t, os.Rename(filepath.Join(root, "etc", "new"), filepath.Join(root, "etc", "current")))
	r.until(t, 2, "listed")
	write(t, filepath.Join(root, "b", "list"), text(4)) // at its new target
	r.until(t, 4, "listed")

	way, err := routeTo(path)
	must(t, err)
	for _, name := range []string{"link", "etc/current", "b/list"} {
		if !way.names[filepath.Join(root, name)] {
			t.Errorf("%s is not on the way: %v", name, way.names)
		}
	}
	if len(way.names) != 3 || len(way.folders) != 3 {
		t.Errorf("the way is %+v", way)
	}
}

// The route to a missing file ends where the file would be created, a relative path begins at the
// working directory, and a loop of links ends.
func TestRoute(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	must(t, os.Symlink("loop", "loop"))
	must(t, os.Symlink("absent", "dangling"))
	for path, names := range map[string][]string{
		dir + "/x/y/list": {"x"},
		"list":            {"list"},
		"./x/../list":     {"x"},
		"loop":            {"loop"},
		"dangling":        {"dangling", "absent"},
	} {
		r, err := routeTo(path)
		must(t, err)
		for _, name := range names {
			if !r.names[filepath.Join(dir, name)] {
				t.Errorf("%s is not on the way to %q: %v", name, path, r.names)
			}
		}
		if len(r.names) != len(names) {
			t.Errorf("the way to %q is %v, want %q", path, r.names, names)
		}
	}
}

// fakeWatch is a watch that the test controls.
type fakeWatch struct {
	signal chan struct{}
	gone   atomic.Bool
	closed atomic.Int32
}

func (w *fakeWatch) changed() <-chan struct{} { return w.signal }
func (w *fakeWatch) broken() bool             { return w.gone.Load() }
func (w *fakeWatch) close()                   { w.closed.Add(1) }

// counted is a source whose loads are counted.
type counted struct {
	*Source
	loads atomic.Int32
}

func (c *counted) Load(ctx context.Context) error {
	c.loads.Add(1)
	return c.Source.Load(ctx)
}

// under runs a test of a source, in a Set and with a watch of its own, in a bubble of
// time.
func under(t *testing.T, cfg Config, open watchFunc, test func(t *testing.T, s *Source, loads *atomic.Int32)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := loaded(t, cfg)
		s.openWatch = open
		c := &counted{Source: s}
		set := inSet(t, c)
		pass(10 * time.Millisecond) // the first load waits for writers, too
		test(t, s, &c.loads)
		set.Close()
	})
}

// pass lets time pass, and waits for what is then done.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Where nothing tells of a change, a machine that was removed is refused within
// the interval and two seconds.
func TestTicker(t *testing.T) {
	path := listIn(t, text(1, 2))
	silent := func(route) (watch, error) { return &fakeWatch{}, nil }
	cfg := Config{Path: path, Every: 30 * time.Second}
	under(t, cfg, silent, func(t *testing.T, s *Source, refreshes *atomic.Int32) {
		for i := range 5 {
			changed := time.Now()
			write(t, path, text(100+i))
			for s.lists(100+i) != "listed" {
				time.Sleep(100 * time.Millisecond)
			}
			if took := time.Since(changed); took > cfg.Every+2*time.Second {
				t.Errorf("a change was followed after %v", took)
			}
			time.Sleep(7 * time.Second)
		}
		begun := refreshes.Load()
		time.Sleep(10 * cfg.Every)
		if n := refreshes.Load() - begun; n < 10 || n > 12 {
			t.Errorf("%d looks in 10 intervals", n)
		}
		must(t, os.Remove(path))
		time.Sleep(cfg.Every + 2*time.Second)
		want(t, s, 104, "listed")
		write(t, path, text(1))
		time.Sleep(cfg.Every + 2*time.Second)
		want(t, s, 1, "listed")
	})
}

// Where the kernel has no watches left, an operator is told so and how to mend
// it, looking goes on, and the watch is made once there are some.
func TestNoWatchesLeft(t *testing.T) {
	var have atomic.Bool
	var partly atomic.Bool
	var made []*fakeWatch
	open := func(route) (watch, error) {
		if have.Load() {
			made = append(made, &fakeWatch{})
			return made[len(made)-1], nil
		}
		err := fmt.Errorf("watch: %w%s", errors.New("no space left on device"), advice)
		if partly.Load() {
			made = append(made, &fakeWatch{})
			return made[len(made)-1], err
		}
		return nil, err
	}
	path := listIn(t, text(1))
	cfg := Config{Path: path, Every: 30 * time.Second}
	under(t, cfg, open, func(t *testing.T, s *Source, _ *atomic.Int32) {
		w := s.Status().Warnings
		if len(w) != 1 || !strings.Contains(w[0], "by polling every 30s: watch: no space left on device (the limits") {
			t.Errorf("warnings %q", w)
		}
		write(t, path, text(2))
		pass(cfg.Every + 2*time.Second)
		want(t, s, 2, "listed")

		partly.Store(true)
		pass(2 * cfg.Every)
		if len(s.Status().Warnings) != 1 || len(made) != 2 || made[0].closed.Load() != 1 || made[1].closed.Load() != 0 {
			t.Errorf("warnings %q, watches %v", s.Status().Warnings, made)
		}
		have.Store(true)
		pass(cfg.Every)
		if w := s.Status().Warnings; len(w) != 0 {
			t.Errorf("warnings %q after a watch was made", w)
		}
		pass(3 * cfg.Every)
		if len(made) != 3 {
			t.Errorf("made %d watches where one would do", len(made))
		}
		made[2].gone.Store(true)
		pass(cfg.Every)
		if len(made) != 4 || made[2].closed.Load() != 1 {
			t.Error("no new watch in the place of one that is broken")
		}
	})
	for i, w := range made {
		if w.closed.Load() != 1 {
			t.Errorf("watch %d was closed %d times", i, w.closed.Load())
		}
	}
}

// A thousand changes in a moment are one refresh, and changes that never end do
// not put it off for ever.
func TestDebounce(t *testing.T) {
	w := &fakeWatch{}
	tell := func() {
		select {
		case w.signal <- struct{}{}:
		default:
		}
	}
	path := listIn(t, text(1))
	open := func(route) (watch, error) {
		w.signal = make(chan struct{}, 1) // in the bubble
		return w, nil
	}
	under(t, byEvents(path), open, func(t *testing.T, s *Source, refreshes *atomic.Int32) {
		begun := refreshes.Load()
		write(t, path, text(2))
		for range 1000 {
			tell()
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		want(t, s, 2, "listed")
		if n := refreshes.Load() - begun; n > 2 {
			t.Errorf("%d refreshes of one change", n)
		}
		write(t, path, text(3))
		for range 15 {
			tell()
			time.Sleep(90 * time.Millisecond)
		}
		want(t, s, 3, "listed")
		tell()
		synctest.Wait() // it ends in the middle of waiting for quiet
	})
}
