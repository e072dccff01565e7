package validate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// may adds a finding if the user of --user may not do with a path what want says.
func (v *validation) may(at, path string, want access.Want) {
	if v.user == nil {
		return
	}
	var err error
	if waited := v.Within(v.cmd.Context(), func(context.Context) error {
		err = v.user.May(path, want)
		return nil
	}); waited != nil {
		err = waited
	}
	v.denied(at, err)
}

// denied adds a finding if err says that the user may not use a file, or that this is not known. It skips files that
// do not exist: other checks report them.
func (v *validation) denied(at string, err error) {
	var denied *access.DeniedError
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.As(err, &denied):
		v.result.Findings = append(v.result.Findings, finding.Finding{
			Severity: finding.Error, At: at, Message: denied.Error(), Action: denied.Remedy(),
		})
	default:
		v.result.Findings.Failed(at, fmt.Errorf("%w: %w", errNotSeen, err))
	}
}

// errNotSeen says that it is not known what the permissions are.
var errNotSeen = errors.New("the permissions could not be looked at")

// mayUse adds findings if the user may not use a path in the configuration in the way the plugin does.
func (v *validation) mayUse(p config.Path) {
	if v.user == nil {
		return
	}
	var found []error
	err := v.Within(v.cmd.Context(), func(ctx context.Context) error {
		if p.Cache {
			found = v.cache(p.Path)
		} else {
			found = v.tree(ctx, p)
		}
		return nil
	})
	if err != nil {
		v.result.Findings.Failed(p.At, err)
		return
	}
	for _, err := range found {
		if doubt, ok := errors.AsType[doubt](err); ok {
			v.result.Findings.Warn(p.At, doubt.action, "%s", doubt.message)
			continue
		}
		v.denied(p.At, err)
	}
}

// A doubt is an error about permissions that is reported as a warning.
type doubt struct{ message, action string }

func (d doubt) Error() string { return d.message }

// cache returns what keeps the user from using a cache. The plugin creates files in the folder of the cache,
// replaces the cache, and reads it only if it belongs to the plugin's user.
func (v *validation) cache(path string) []error {
	all := []error{v.user.May(filepath.Dir(path), access.Write|access.Search)}
	for i, name := range boltfile.Names(path) {
		info, err := os.Lstat(name)
		switch {
		case err != nil:
		case i == 0 && !v.user.Owns(info):
			all = append(all, doubt{"the cache " + name + " belongs to another user than " + v.user.Name +
				", so what it holds is not used", "chown it, or delete it"})
		case i == 0:
			all = append(all, v.user.May(name, access.Read))
		case strings.HasSuffix(name, ".lock"):
			all = append(all, v.user.May(name, access.Read|access.Write))
		}
	}
	return all
}

const (
	// mostDenied is how many files in a folder are reported as denied to the user.
	mostDenied = 20
	// mostInFolder is how many names in a folder are checked.
	mostInFolder = 10_000
)

// tree returns what keeps the user from reading a file, or a folder and what the plugin reads in it.
func (v *validation) tree(ctx context.Context, p config.Path) []error {
	path := p.Path
	info, err := os.Stat(path)
	if err != nil {
		return []error{err}
	}
	if !info.IsDir() {
		return []error{v.user.May(path, access.Read)}
	}
	if err := v.user.May(path, access.Read|access.Search); err != nil {
		return []error{err}
	}
	folder, err := os.Open(path) //nolint:gosec // G304: the configuration names it
	if err != nil {
		return []error{err}
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(mostInFolder) // an error ends the list
	var all []error
	unread := 0
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if ctx.Err() != nil || len(all) == mostDenied {
			break
		}
		isFolder, err := v.inFolder(filepath.Join(path, name))
		switch {
		case err == nil:
		case p.Folder && !isFolder: // an entry of a hash_dir lists its machine by its name alone
			unread++
		default:
			all = append(all, err)
		}
	}
	if unread > 0 {
		all = append(all, doubt{
			fmt.Sprintf("user %s may not read %d files in %s, so the names and labels in them are ignored",
				v.user.Name, unread, path), "chmod o+r them, if they have names and labels",
		})
	}
	return all
}

// inFolder returns what keeps the user from reading a file or a folder. isFolder is true if it is a folder.
func (v *validation) inFolder(path string) (isFolder bool, err error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return false, nil //nolint:nilerr // a dangling link, or gone: other checks report that
	case info.IsDir():
		return true, v.user.May(path, access.Read|access.Search)
	}
	return false, v.user.May(path, access.Read)
}
