package hashdir

import (
	"cmp"
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
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

const (
	// scanInterval is the shortest time from the end of one scan to the next. If a scan took long,
	// the next one follows after scanShare times as long.
	scanInterval, scanShare = time.Minute, 20
	// scanTimeout is the longest time that a scan may take. What it has not looked at by then is
	// left out.
	scanTimeout = time.Minute
	// maxScanned and maxOpened are the maximum numbers of names that a scan looks at and of files
	// that it opens.
	maxScanned, maxOpened = 1 << 20, 1 << 16
	// maxScanWarnings is the maximum number of warnings that a scan keeps.
	maxScanWarnings = 100
	// maxShared is the maximum number of entries with the same name that a scan keeps.
	maxShared = 16
)

// A scanner lists the directory periodically, to find what no check would.
type scanner struct {
	interval time.Duration
	last     atomic.Pointer[scan] // nil before the first
}

// A scan is what was found in the directory at one time. It is immutable when it is complete.
type scan struct {
	warnings []string
	more     int // warnings that were left out
	// named has the first entry that gives each name. shared has, for each name that several
	// entries give, all of those entries.
	named  map[string]string
	shared map[string][]string

	scanned, opened       int
	maxScanned, maxOpened int
	others                int // names that look like nothing

	// each, if it is not nil, is called with every entry, or with why it cannot be used. It then
	// also has to deal with names that several entries give.
	each func(path string, attrs sources.Attributes, err error)
}

// Watch implements sources.Watcher: it scans the directory again and again until ctx ends.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	for {
		begun := time.Now()
		s.scan(ctx)
		changed() // so that the new warnings are logged
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
	found := s.last.Load()
	if found == nil {
		return sources.Status{}
	}
	warnings := slices.Clone(found.warnings)
	if found.more > 0 {
		warnings = append(warnings, fmt.Sprintf("%d more names like these", found.more))
	}
	return sources.Status{Warnings: warnings}
}

// scan scans the directory. It ignores errors, since checks fail for the same reasons and report
// them.
func (s *Source) scan(ctx context.Context) {
	inTime, cancel := context.WithTimeout(ctx, scanTimeout)
	defer cancel()
	if found, err := s.scanNow(inTime); err == nil {
		s.last.Store(found)
	}
}

func (s *Source) scanNow(ctx context.Context) (*scan, error) {
	dir, err := s.open(s.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	found := &scan{
		named: map[string]string{}, shared: map[string][]string{}, maxScanned: maxScanned, maxOpened: maxOpened,
	}
	if err := found.folders(ctx, dir, s.marker); err != nil && ctx.Err() == nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(found.shared)) {
		entries := found.shared[name]
		slices.Sort(entries)
		found.warn("the name %q is given by several entries, %q and %q among them: "+
			"the source cannot tell about them until each has its own", name, entries[0], entries[1])
	}
	if ctx.Err() != nil || found.scanned >= found.maxScanned || found.opened >= found.maxOpened {
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

// folders looks at the names in the directory and in its shards.
func (f *scan) folders(ctx context.Context, dir directory, marker string) error {
	shards, err := f.folder(ctx, dir, "", marker)
	for _, shard := range shards {
		if err == nil {
			_, err = f.folder(ctx, dir, shard, "")
		}
	}
	return err
}

// folder looks at the names in the directory, or in a shard, and returns the names of
// shards.
func (f *scan) folder(ctx context.Context, dir directory, shard, marker string) ([]string, error) {
	opened, err := dir.OpenFile(cmp.Or(shard, "."), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, f.unlessEmpty(shard, err)
	}
	defer opened.Close()
	var shards []string
	for f.scanned < f.maxScanned {
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
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return shards, f.unlessEmpty(shard, err)
		}
	}
	return shards, nil
}

// unlessEmpty returns why a folder cannot be read, or nil if that does not matter: a shard that is
// gone or is not a folder has no entries. A scan also skips a shard that it may not read, since a
// check that needs it reports that. Entries must not skip it.
func (f *scan) unlessEmpty(shard string, err error) error {
	gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
	if shard != "" && (gone || f.each == nil) {
		return nil
	}
	return err
}

// name looks at one name and reports whether it is that of a shard.
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

// entry looks at one name that is not that of a shard.
func (f *scan) entry(dir directory, shard string, entry fs.DirEntry) {
	name := entry.Name()
	path := name
	if shard != "" {
		path = shard + "/" + name
	}
	if len(name) != hashLen || !isEntryCase(name) || shard != "" && shard != name[:2] {
		if why := doubt(shard, name); why != "" {
			f.warn("%.100q is no entry: it %s", path, why)
		} else {
			f.others++
		}
		return
	}
	if f.opened >= f.maxOpened {
		return
	}
	f.opened++
	content, listed, err := readEntry(dir, path)
	var attrs sources.Attributes
	if err == nil {
		attrs, err = parseEntry(content)
	}
	if f.each != nil && (listed || err != nil) {
		f.each(path, attrs, err)
	}
	switch {
	case err != nil:
		f.warn("the entry %q cannot be used: %v", path, explain(err))
		return
	case !listed:
		f.warn("%q is no entry: it is not a regular file, nor a link to one", path)
		return
	}
	for _, why := range doubtfulFields(content) {
		f.warn("the entry %q: %s", path, why)
	}
	if attrs.Name != "" && f.each == nil {
		f.claim(attrs.Name, path)
	}
}

// claim records that the entry at path gives this name.
func (f *scan) claim(name, path string) {
	first, taken := f.named[name]
	switch {
	case !taken:
		f.named[name] = path
	case !sameMachine(first, path):
		if len(f.shared[name]) == 0 {
			f.shared[name] = []string{first}
		}
		if len(f.shared[name]) < maxShared {
			f.shared[name] = append(f.shared[name], path)
		}
	}
}

// sameMachine reports whether two paths end in the same EK hash, in either case.
func sameMachine(a, b string) bool {
	return strings.EqualFold(a[len(a)-hashLen:], b[len(b)-hashLen:])
}

// doubtfulFields says what is doubtful about the fields of an entry's content.
func doubtfulFields(content []byte) (all []string) {
	var fields map[string]jsontext.Value
	if object := objectIn(content); object == nil || json.Unmarshal(object, &fields) != nil {
		return nil
	}
	for name, value := range fields {
		if name == "hash" || name == "name" || name == "labels" {
			continue
		}
		if why := ekhashes.DoubtfulField(name, value); why != "" {
			all = append(all, why)
		}
	}
	slices.Sort(all)
	return all
}

// unique returns an error if another machine's entry also gives this name: the last scan found that
// entry, and the entry still gives the name. Two machines with the same name would have the same
// SPIFFE ID if the ID is made from the name.
func (s *Source) unique(dir directory, hash, name string) error {
	found := s.last.Load()
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
