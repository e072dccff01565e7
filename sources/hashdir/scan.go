package hashdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

const (
	// scanInterval is the least time between two scans. One that takes long is
	// followed by a pause of scanShare times that.
	scanInterval, scanShare = time.Minute, 20
	// scanTimeout bounds a scan: what it has not come to by then is left out.
	scanTimeout = time.Minute
	// maxScanned is how many names a scan looks at, and maxOpened how many of them
	// it looks into.
	maxScanned, maxOpened = 1 << 20, 1 << 16
	// maxScanWarnings is how many warnings it keeps.
	maxScanWarnings = 100
	// maxShared is how many entries of one name it keeps.
	maxShared = 16
)

// A scanner lists the directory now and then, for what no attestation sees.
type scanner struct {
	interval time.Duration
	found    atomic.Pointer[scan] // by the last scan, nil before it
}

// A scan is what was seen in the directory at one time. It is never changed once it
// is done.
type scan struct {
	warnings []string
	more     int // warnings that were left out
	// named are the first entries that give a name, and shared all those that give
	// one that another entry gives.
	named  map[string]string
	shared map[string][]string

	scanned, opened int
}

// Watch implements sources.Watcher: it scans the directory, and then again and again,
// until ctx ends.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	for {
		begun := time.Now()
		s.scan(ctx)
		changed() // so that what Status says now is told
		timer := time.NewTimer(max(s.interval, scanShare*time.Since(begun)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Status implements sources.Reporter.
func (s *Source) Status() sources.Status {
	found := s.found.Load()
	if found == nil {
		return sources.Status{}
	}
	warnings := slices.Clone(found.warnings)
	if found.more > 0 {
		warnings = append(warnings, fmt.Sprintf("%d more names like these", found.more))
	}
	return sources.Status{Warnings: warnings}
}

// scan looks at the directory. What keeps it from that is told by checks.
func (s *Source) scan(ctx context.Context) {
	inTime, cancel := context.WithTimeout(ctx, scanTimeout)
	defer cancel()
	found, err := s.scanNow(inTime)
	switch {
	case err == nil:
		s.found.Store(found)
	case errors.Is(err, fs.ErrPermission): // searching it is enough for checks
		s.found.Store(&scan{warnings: []string{fmt.Sprintf("the directory %q cannot be listed, so names in it that "+
			"are no entries go unnoticed: allow the SPIRE server's user to read it", s.path)}})
	}
}

func (s *Source) scanNow(ctx context.Context) (*scan, error) {
	root, err := os.OpenRoot(s.path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := s.open(s.path)
	if err != nil {
		return nil, err
	}
	defer dir.close()
	found := &scan{named: map[string]string{}, shared: map[string][]string{}}
	shards, err := found.folder(ctx, root, dir, "", s.marker)
	for _, shard := range shards {
		if err == nil {
			_, err = found.folder(ctx, root, dir, shard, "")
		}
	}
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(found.shared)) {
		entries := found.shared[name]
		slices.Sort(entries)
		found.warn("the name %q is given by several entries, %q and %q among them: "+
			"the source cannot tell about them until each has its own", name, entries[0], entries[1])
	}
	if ctx.Err() != nil || found.scanned >= maxScanned || found.opened >= maxOpened {
		found.warn("the directory is too large to be looked through: not all of its names were checked")
	}
	slices.Sort(found.warnings)
	found.named = nil
	return found, nil
}

func (f *scan) warn(format string, args ...any) {
	if len(f.warnings) >= maxScanWarnings {
		f.more++
		return
	}
	f.warnings = append(f.warnings, fmt.Sprintf(format, args...))
}

// folder looks at the names in the directory, or in a shard of it. It returns those
// that are shards.
func (f *scan) folder(ctx context.Context, root *os.Root, dir directory, shard, marker string) ([]string, error) {
	path := shard
	if shard == "" {
		path = "."
	}
	opened, err := root.Open(path)
	if err != nil {
		if shard != "" { // gone, or a file: what is in it is no entry
			err = nil
		}
		return nil, err
	}
	defer opened.Close()
	var shards []string
	for f.scanned < maxScanned {
		const batch = 1024
		names, err := opened.ReadDir(batch)
		for _, entry := range names {
			if ctx.Err() != nil {
				return shards, ctx.Err()
			}
			f.scanned++
			if shard == "" && entry.Name() == marker {
				continue
			}
			if f.name(dir, shard, entry) {
				shards = append(shards, entry.Name())
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) || shard != "" {
				err = nil
			}
			return shards, err
		}
	}
	return shards, nil
}

// name looks at one name. It reports whether that is a shard's.
func (f *scan) name(dir directory, shard string, entry fs.DirEntry) bool {
	name := entry.Name()
	folder := len(name) == 2 && digits(name) == 2 && entry.Type()&(fs.ModeDir|fs.ModeSymlink) != 0
	switch {
	case strings.HasPrefix(name, "."):
	case !folder:
		f.entry(dir, shard, entry)
	case shard != "":
		f.warn("%q is a folder in a folder: entries in it are not found", shard+"/"+name)
	case !isEntryCase(name):
		f.warn("the folder %q has letters of both cases: entries in it are not found", name)
	default:
		return true
	}
	return false
}

// entry looks at one name that is no shard's.
func (f *scan) entry(dir directory, shard string, entry fs.DirEntry) {
	name := entry.Name()
	path := name
	if shard != "" {
		path = shard + "/" + name
	}
	if len(name) != hashLen || !isEntryCase(name) || shard != "" && shard != name[:2] {
		if why := doubt(shard, name); why != "" {
			f.warn("%.100q is no entry: it %s", path, why)
		}
		return
	}
	if f.opened >= maxOpened {
		return
	}
	f.opened++
	attrs, listed, err := lookUp(dir, path)
	switch {
	case err != nil:
		f.warn("the entry %q cannot be used: %v", path, explain(err))
		return
	case !listed:
		f.warn("%q is no entry: it is not a regular file, nor a link to one", path)
		return
	}
	for _, why := range doubtfulFields(dir, path) {
		f.warn("the entry %q: %s", path, why)
	}
	if attrs.Name == "" {
		return
	}
	first, twice := f.named[attrs.Name]
	switch {
	case !twice:
		f.named[attrs.Name] = path
	case !sameMachine(first, name):
		if len(f.shared[attrs.Name]) == 0 {
			f.shared[attrs.Name] = []string{first}
		}
		if len(f.shared[attrs.Name]) < maxShared {
			f.shared[attrs.Name] = append(f.shared[attrs.Name], path)
		}
	}
}

// sameMachine reports whether a path is of an entry with this hash, in any form.
func sameMachine(path, hash string) bool { return strings.EqualFold(path[len(path)-hashLen:], hash) }

// doubtfulFields says what is doubtful about the fields of an entry's content.
func doubtfulFields(dir directory, path string) (all []string) {
	if f, err := dir.stat(path); err != nil || f.size == 0 || f.size > maxContent {
		return nil
	}
	content, _, err := dir.read(path, maxContent)
	if err != nil {
		return nil
	}
	var fields map[string]jsontext.Value
	if object := objectIn(content); object == nil || json.Unmarshal(object, &fields) != nil {
		return nil
	}
	for name, value := range fields {
		if name == "hash" || name == "name" || name == "labels" {
			continue
		}
		if why := eklist.DoubtfulField(name, value); why != "" {
			all = append(all, why)
		}
	}
	slices.Sort(all)
	return all
}

// unique returns an error if the name of the entry of a hash is another entry's too,
// as the last scan has seen and as it still is: two machines of one name would have
// one SPIFFE ID if that is made of the name.
func (s *Source) unique(dir directory, hash, name string) error {
	found := s.found.Load()
	if found == nil || name == "" {
		return nil
	}
	for _, path := range found.shared[name] {
		if sameMachine(path, hash) {
			continue
		}
		attrs, listed, err := lookUp(dir, path)
		if err != nil || listed && attrs.Name == name {
			return fmt.Errorf("gives the name %q, which %q gives too: give each machine its own", name, path)
		}
	}
	return nil
}
