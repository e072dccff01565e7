package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// server checks a server. Mistakes in its configuration are diagnoses, not an error.
func (d *doctor) server(name string) error {
	content, err := input.Read(name, d.cmd.InOrStdin(), cli.MaxConfig)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	c, err := config.NewLoader().LoadFile(d.cmd.Context(), string(content))
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			d.add("configuration", statusFault, "", "%v", p)
		}
		return nil
	}
	if err != nil {
		d.add("configuration", statusUnknown, "", "%v", err)
		return nil
	}
	d.ok("configuration", "sources: %d, allow rules: %d, deny rules: %d",
		len(c.Members), len(c.Policy.Allow), len(c.Policy.Deny))
	for _, w := range c.Warned() {
		s := statusNote
		if w.Unsure {
			s = statusUnknown
		}
		d.add("configuration", s, "", "%v", w)
	}
	for _, p := range c.Paths() {
		if p.Cache {
			d.cache(p)
		}
	}
	if err := d.sources(c); err != nil {
		return err
	}
	d.lookAtClock(nil)
	return nil
}

// sources loads each source once, from its files and caches.
func (d *doctor) sources(c *config.Config) error {
	d.progress.Now("loading the sources")
	c.Examine(false)
	set, err := c.NewSet(admission.Options{Once: true})
	if err != nil {
		return err
	}
	defer set.Close()
	ctx := d.cmd.Context()
	set.Start(ctx, nil)
	// Asking about a machine that does not exist shows whether sources without a loaded list can be read.
	nobody := &sources.Evidence{EKHash: sources.EKHash{1}, Incomplete: true}
	if _, err := set.Preview(ctx, nobody, false); err != nil {
		return err
	}
	for i, s := range set.Status() { // in the order of the members
		if at := c.Place(s.Name); !d.uncached(at, c.Members[i], s) {
			d.source(at, s, time.Now())
		}
	}
	return nil
}

// uncached reports whether a source is a list on a web server and no cache has a copy of it. If so, it adds
// what that means. It does not ask the web server.
func (d *doctor) uncached(at string, m admission.Member, s admission.SourceStatus) bool {
	if !s.Loaded.IsZero() || s.Err != nil && finding.CouldNotLook(s.Err) {
		return false
	}
	var web httplist.Config
	switch cfg := m.Config.(type) {
	case httplist.Config:
		web = cfg
	case bootpolicy.Config:
		web = cfg.ListConfig
	}
	switch {
	case web.URL == "":
		return false
	case web.CachePath == "":
		d.note(at, "what it serves is in the server's memory alone: it has no cache_path, and no network was asked")
	default:
		d.add(at, statusFault, "see what its web server says: tpm-attestor validate --network",
			"the server has no list: there is none in its cache (%v)", s.Err)
	}
	return true
}

// source adds what a source serves. A source that loads no list serves nothing of its own: the server asks it
// at each attestation.
func (d *doctor) source(at string, s admission.SourceStatus, now time.Time) {
	switch {
	case s.Stuck > 0 || s.Err != nil && finding.CouldNotLook(s.Err):
		d.add(at, statusUnknown, "run this as root, or as the server's user", "%v", s.Err)
	case s.Err != nil:
		d.add(at, statusFault, "see tpm-attestor validate", "%v", s.Err)
	case s.Loads && s.Loaded.IsZero():
		d.add(at, statusFault, "see whether its web server answers: tpm-attestor validate --network",
			"it has nothing to serve, so it cannot tell")
	case !s.Loads:
		d.ok(at, "asked at each attestation")
	default:
		d.served(at, s.Status, now)
	}
	for _, w := range s.Warnings {
		d.note(at, "%s", w)
	}
}

// served adds what a source serves, how old that is, and until when the source serves it.
func (d *doctor) served(at string, s sources.Status, now time.Time) {
	const publish = "publish a new one, and see that the web server answers"
	text := cli.Entries(s.Entries)
	if s.Serial > 0 {
		text += fmt.Sprintf(", serial %d", s.Serial)
	}
	if !s.Confirmed.IsZero() {
		text += ", confirmed " + ago(now.Sub(s.Confirmed))
	}
	const soonOut = time.Hour
	switch {
	case s.Confirmed.After(now.Add(time.Minute)):
		d.add(at, statusFault, "set the clock; the list is loaded anew then",
			"%s: its cache was written at %s, in the future", text, stamp(s.Confirmed))
	case !s.Expires.IsZero() && now.After(s.Expires):
		d.add(at, statusFault, publish, "%s: the list expired at %s", text, stamp(s.Expires))
	case !s.Stale.IsZero() && now.After(s.Stale):
		d.add(at, statusFault, publish, "%s: it is stale since %s", text, stamp(s.Stale))
	case !s.Expires.IsZero() && s.Expires.Sub(now) < soonOut:
		d.add(at, statusFault, publish, "%s: the list expires at %s", text, stamp(s.Expires))
	case !s.Stale.IsZero():
		d.ok(at, "%s, serves until %s unless it is confirmed again", text, stamp(s.Stale))
	default:
		d.ok(at, "%s", text)
	}
}

func ago(d time.Duration) string {
	if d < time.Second {
		return "now"
	}
	return d.Truncate(time.Second).String() + " ago"
}

// cache checks a cache, without reading it, and the room on its disk.
func (d *doctor) cache(p config.Path) {
	var info fs.FileInfo
	var free space
	err := d.Within(d.cmd.Context(), func(context.Context) (err error) {
		if free, err = spaceIn(filepath.Dir(p.Path)); err != nil {
			return err
		}
		info, err = os.Stat(p.Path)
		return err
	})
	const folder = "cache"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.note(folder, "%s: %s is not there yet: the server writes it when it has loaded", p.At, p.Path)
	case err != nil:
		d.failed(folder, fmt.Errorf("%s: %w", p.At, err))
		return
	case info.Mode().Perm()&0o022 != 0:
		d.add(folder, statusFault, "chmod go-w "+p.Path,
			"%s: other users may write to %s, so what it holds is not used", p.At, p.Path)
	default:
		d.ok(folder, "%s: %s, %d KiB, written %s", p.At, p.Path, (info.Size()+1023)/1024, stamp(info.ModTime()))
	}
	size := int64(0)
	if info != nil {
		size = info.Size()
	}
	d.disk(p.At, p.Path, free, size)
}

// disk checks whether there is room to write a cache again beside the old one, which has this size.
func (d *doctor) disk(at, path string, free space, size int64) {
	const least = 64 << 20 // a list of a million machines
	switch need := max(least, 2*size); {
	case !free.known:
	case free.bytes < uint64(need) || free.files == 0:
		d.add("disk", statusFault, "make room, or move cache_path",
			"%s: %d MiB and %d files are free below %s, and a cache is written anew beside the old one",
			at, free.bytes>>20, free.files, path)
	default:
		d.ok("disk", "%s: %d MiB are free", at, free.bytes>>20)
	}
}

// space is how much room a file system has for a user who is not root.
type space struct {
	known        bool
	bytes, files uint64
}
