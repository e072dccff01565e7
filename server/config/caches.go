package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// cacheUse says which source uses a path, and whether it does so for its cache or for a
// file beside its cache.
type cacheUse struct {
	source string
	cache  bool
}

// checkCaches refuses caches if two sources would write to the same path: a source writes its cache and a few files
// beside it.
func checkCaches(ps *problems, all []definition) {
	uses := map[string]cacheUse{}
	for _, d := range all {
		for _, f := range d.files {
			if f.cache != "" {
				checkCache(ps, d.path, f, uses)
			}
		}
	}
}

// checkCache reports the first path that a source's cache shares with another source's.
func checkCache(ps *problems, source string, f file, uses map[string]cacheUse) {
	said := false
	for i, name := range boltfile.Names(filepath.Clean(f.cache)) {
		other, taken := uses[name]
		switch isCache := i == 0; {
		case !taken:
			uses[name] = cacheUse{source, isCache}
		case said:
		case other.cache && isCache:
			said = true
			ps.add(f.at, "is also the cache of %s: give each source its own", other.source)
		default:
			said = true
			ps.add(f.at, "meets the cache of %s: a cache has files beside it "+
				"whose names end in \".new\" and \".lock\"; give it another name", other.source)
		}
	}
}

// found is what the file system says about a file, and about the cache in it if the file is the folder of a cache.
// Either may be nil.
type found struct{ info, cache fs.FileInfo }

// checkCacheFiles refuses caches that are the same file under different paths: through a link, or in a folder that
// has two names.
func checkCacheFiles(ps *problems, files []file, results []found) {
	for i, f := range files {
		for j, other := range files[:i] {
			if f.cache != "" && other.cache != "" && meet(f, other, results[i], results[j]) {
				ps.add(f.at, "leads to the same file as %s: give each source its own", other.at)
				break
			}
		}
	}
}

func meet(a, b file, foundA, foundB found) bool {
	if filepath.Clean(a.cache) == filepath.Clean(b.cache) {
		return false // checkCaches has reported it
	}
	if foundA.cache != nil && foundB.cache != nil && os.SameFile(foundA.cache, foundB.cache) {
		return true
	}
	if foundA.info == nil || foundB.info == nil || !os.SameFile(foundA.info, foundB.info) ||
		filepath.Clean(a.path) == filepath.Clean(b.path) {
		return false
	}
	taken := map[string]bool{}
	for _, name := range boltfile.Names(filepath.Base(a.cache)) {
		taken[name] = true
	}
	for _, name := range boltfile.Names(filepath.Base(b.cache)) {
		if taken[name] {
			return true
		}
	}
	return false
}

// exposedCache returns an error if other users may write to a cache, since its content is not used then.
func exposedCache(path string, info fs.FileInfo) error {
	if info.Mode().IsRegular() && info.Mode().Perm()&0o022 != 0 {
		return exposedError{fmt.Sprintf("%q may be written by other users, so what it holds is not used: chmod go-w it",
			shorten(path))}
	}
	return nil
}
