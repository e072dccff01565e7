// Package hashdir is a source that knows a TPM by a file in a directory, named
// by the hash of its endorsement key.
//
// No entries are kept in memory. Each check opens the directory and looks for
//
//	<path>/<first two hex digits of hash>/<hash>
//	<path>/<hash>
//
// in lower case, and then for both in upper case; the first one found counts. So a
// machine is added by making a file and revoked by removing it, on any file system.
//
// A regular file is an entry. So is a symbolic link to a regular file if the link's path never
// leaves the directory, as in a mounted ConfigMap. A folder, a socket, a FIFO, a device and a
// dangling link are not entries. Anything that is neither "exists" nor "does not exist" is an
// error: a directory that is gone or may not be read, an input/output error, a loop of links, a
// link that leads outside.
//
// An entry may be empty. If its content is a JSON object of at most 64 KiB, the object describes
// the machine:
//
//	{"name": "us-east-17", "labels": ["rack:12", "env:prod"]}
//
// Both fields are optional, and other fields are ignored. Content that does not begin like a JSON
// object is ignored, and so is content that the server's user may not read: what counts is that the
// file exists. Content that begins like a JSON object but is not a complete one is an error.
//
// Watch lists the directory periodically, and never because of an attestation. Status then warns of
// files that look like entries but are not, and of names that several entries give.
package hashdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Config says where the directory is.
type Config struct {
	// Path is the directory. Each check resolves it anew, including symbolic links, so that the
	// directory may be swapped by a rename or a mount. A relative path is relative to the working
	// directory of the process.
	Path string
	// Marker, if it is not empty, is the name of a file in the directory. If that file is missing,
	// the source cannot tell: a mount point looks like an empty directory while nothing is mounted
	// there. It is a file name without a path, and must not look like an entry or a shard.
	Marker string
}

// Source is a directory of EK hashes. Between checks it holds no file open and keeps no entries. It
// is safe for concurrent use.
type Source struct {
	path, marker string
	open         func(path string) (directory, error) // openDirectory, except in tests

	scanner
}

// New checks the configuration and returns the source. It does not touch the
// file system.
func New(cfg Config) (*Source, error) {
	if err := errors.Join(checkPath(cfg.Path), checkMarker(cfg.Marker)); err != nil {
		return nil, err
	}
	return &Source{
		path: cfg.Path, marker: cfg.Marker, open: openDirectory, scanner: scanner{interval: scanInterval},
	}, nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return sources.BadField("path", "is missing")
	case strings.ContainsRune(path, 0):
		return sources.BadField("path", "has a zero byte in it")
	}
	return nil
}

// checkMarker returns an error if name is not a file name without a path, or if the source
// looks for entries or shards under that name.
func checkMarker(name string) error {
	if name == "" {
		return nil
	}
	if name == "." || !filepath.IsLocal(name) || strings.ContainsAny(name, "/\\\x00") || len(name) > 255 {
		return sources.BadField("marker", "%.80q is not a file name: "+
			"write the name of a file in the directory, without a path", name)
	}
	if (len(name) == 2 || len(name) == hashLen) && isEntryCase(name) {
		return sources.BadField("marker", "%.80q is a name that an entry may have: choose another", name)
	}
	return nil
}

// attempts is how often a check that finds nothing looks again while the directory, or a link in
// it, may have been replaced.
const attempts = 20

// errReplaced means that the path now leads to another directory or to none. The latter may be the
// case for a moment while an operator swaps directories.
var errReplaced = errors.New("is the path correct, and its file system mounted?")

// Check implements [sources.Source]. It makes its system calls in the calling goroutine:
// while the file system hangs, Check does not return.
//
// If a TPM is listed both before and after the directory is replaced, Check never says "not listed"
// in between. The directory that it has opened may since have been replaced and half removed, so a
// missing entry proves nothing until that has been ruled out.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (v sources.Verdict, err error) {
	names := entryNames(ev.EKHash)
	for range attempts {
		if err := ctx.Err(); err != nil {
			return sources.Verdict{}, err
		}
		if v, err = s.attempt(names); !errors.Is(err, errReplaced) {
			break
		}
	}
	return v, err
}

// attempt opens the directory and looks for an entry. If it finds none and there is a link on the
// way, it looks again: the kernel follows a link step by step, so the old target may have been
// removed just after the link was replaced. Finally, it checks that the path still leads to the
// directory that it has opened.
func (s *Source) attempt(names [2]string) (sources.Verdict, error) {
	dir, err := s.open(s.path)
	if err != nil {
		return sources.Verdict{}, s.pathError("open", err)
	}
	defer func() { _ = dir.Close() }()
	for range attempts {
		if v, err := s.look(dir, names); err != nil || v.Listed {
			return v, err
		}
		if !linked(dir, names) {
			break
		}
	}
	at, err := isAt(dir, s.path)
	if err == nil && !at {
		err = fmt.Errorf("replaced during each attempt: %w", errReplaced)
	}
	if err != nil {
		return sources.Verdict{}, s.pathError("stat", err)
	}
	return sources.Verdict{}, nil
}

// pathError describes an error of the directory itself.
func (s *Source) pathError(op string, err error) error {
	err = explain(err)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errReplaced)
	}
	return fmt.Errorf("%s directory %q: %w", op, s.path, err)
}

// reasons are the reasons in a verdict, for an entry in a shard and for a flat entry.
var reasons = [2]string{"has a file named after the hash in its shard", "has a file named after the hash"}

// look looks for an entry: in lower case, then in upper case.
func (s *Source) look(dir directory, names [2]string) (sources.Verdict, error) {
	if err := s.checkMarked(dir); err != nil {
		return sources.Verdict{}, err
	}
	v, err := s.lookFor(dir, names)
	if err != nil || v.Listed {
		return v, err
	}
	if upper, ok := upperNames(names[1]); ok {
		return s.lookFor(dir, upper)
	}
	return sources.Verdict{}, nil
}

func (s *Source) lookFor(dir directory, names [2]string) (sources.Verdict, error) {
	for i, name := range names {
		attrs, found, err := lookUp(dir, name)
		if err == nil && found {
			err = s.unique(dir, names[1], attrs.Name)
		}
		if err != nil {
			return sources.Verdict{}, fmt.Errorf("%q in directory %q: %w", name, s.path, explain(err))
		}
		if found {
			return sources.Verdict{Listed: true, Reason: reasons[i], Attributes: attrs}, nil
		}
	}
	return sources.Verdict{}, nil
}

// linked reports whether an entry or its shard would be reached through a link.
func linked(dir directory, names [2]string) bool {
	upper, _ := upperNames(names[1])
	for _, names := range [][2]string{names, upper} {
		sharded, flat := names[0], names[1]
		shard, err := dir.Lstat(flat[:2])
		if isLinkAt(dir, flat) || err == nil && (isLink(shard) || isLinkAt(dir, sharded)) {
			return true
		}
	}
	return false
}

func isLinkAt(dir directory, name string) bool {
	info, err := dir.Lstat(name)
	return err == nil && isLink(info)
}

func isLink(info fs.FileInfo) bool { return info.Mode()&fs.ModeSymlink != 0 }

// checkMarked returns an error if a marker is configured and is not in the directory.
func (s *Source) checkMarked(dir directory) error {
	if s.marker == "" {
		return nil
	}
	f, err := dir.Stat(s.marker)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("marker %q in directory %q does not exist: %w", s.marker, s.path, errReplaced)
	}
	if err == nil && !f.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		return fmt.Errorf("marker %q in directory %q: %w", s.marker, s.path, explain(err))
	}
	return nil
}

// lookUp looks for an entry under one name.
func lookUp(dir directory, name string) (attrs sources.Attributes, found bool, err error) {
	content, found, err := readEntry(dir, name)
	if err != nil || !found {
		return sources.Attributes{}, false, err
	}
	attrs, err = parseEntry(content)
	return attrs, err == nil, err
}
