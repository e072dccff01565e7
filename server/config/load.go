package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

// A Loader reads configurations and checks that the files they name exist. It is safe for concurrent use. It limits
// how many questions to file systems are unanswered, so a process should have only one Loader.
type Loader struct {
	// Identity provides SPIRE's own identity to sources while they run. The Loader itself does not use it. It must
	// be set before the first Load.
	Identity web.IdentityProvider

	timeout time.Duration
	stat    func(string) (fs.FileInfo, error)
	// questions limits how many questions may be open at once, including those that a
	// file system never answers.
	questions *admission.Lane
}

// The limits of Loader.
const (
	defaultStatTimeout = 2 * time.Second
	statSlots          = 32
)

// NewLoader returns a Loader.
func NewLoader() *Loader {
	return &Loader{
		Identity: noIdentity{}, timeout: defaultStatTimeout, stat: os.Stat,
		questions: admission.NewLane("questions to file systems", statSlots, func(bool) {}),
	}
}

// Load reads a configuration as Parse does, and also refuses it if a file or a folder that
// it names does not exist. If a file system does not answer within 2 seconds or before ctx
// ends, that is a warning: the configuration may be right. The error is of the type
// Problems.
func (l *Loader) Load(ctx context.Context, text, trustDomain string) (*Config, error) {
	return l.load(ctx, fromSPIRE(text, trustDomain))
}

// LoadFile does what Load does, for a configuration as an operator has it in a file: see File.
func (l *Loader) LoadFile(ctx context.Context, text string) (*Config, error) {
	return l.Open(ctx, text).Load(ctx)
}

func (l *Loader) load(ctx context.Context, in *input) (*Config, error) {
	c := in.parse(l.Identity)
	l.look(ctx, &in.problems, c)
	return in.result(c)
}

// look asks about all files at the same time.
func (l *Loader) look(ctx context.Context, ps *problems, c *Config) {
	var wg sync.WaitGroup
	results, errs := make([]found, len(c.files)), make([]error, len(c.files))
	for i, f := range c.files {
		wg.Go(func() { results[i], errs[i] = l.exists(ctx, f) })
	}
	wg.Wait()
	checkCacheFiles(ps, c.files, results)
	for i, f := range c.files {
		var unsure unsureError
		var exposed exposedError
		switch err := errs[i]; {
		case err == nil:
		case errors.As(err, &unsure):
			c.warnOf(f.at, err.Error(), true)
		case errors.As(err, &exposed):
			c.warn(f.at, err.Error())
		default:
			ps.add(f.at, "%v", err)
		}
	}
}

// unsureError says that the file system has not said whether a file exists.
type unsureError struct{ err error }

func (e unsureError) Error() string {
	return fmt.Sprintf("cannot check whether this exists: %v; the source cannot tell until it does", e.err)
}

// exposedError says that a file is open to others, and what to do about it.
type exposedError struct{ problem string }

func (e exposedError) Error() string { return e.problem }

func exposedSecret(path string) error {
	return exposedError{fmt.Sprintf("%q holds a secret but every user on this machine may read it: chmod o= it",
		shorten(path))}
}

// exists reports whether a file is there. It waits for the file system no longer than
// l.timeout.
func (l *Loader) exists(ctx context.Context, f file) (found, error) {
	var there found
	var err error
	waited := l.questions.Do(ctx, l.timeout, func(context.Context) error {
		there, err = l.ask(f)
		return nil
	})
	if waited != nil { // ask may still be running: its results must not be read
		return found{}, unsureError{fmt.Errorf("the file system does not answer: %w", waited)}
	}
	return there, err
}

// ask asks the file system.
func (l *Loader) ask(f file) (found, error) {
	info, err := l.stat(f.path)
	if err := f.check(info, err); err != nil || f.cache == "" {
		return found{info: info}, err
	}
	if cache, err := l.stat(f.cache); err == nil { // otherwise the source makes it
		return found{info, cache}, exposedCache(f.cache, cache)
	}
	return found{info: info}, nil
}

// check returns what is wrong with a file. info and err are the file system's answer.
func (f file) check(info fs.FileInfo, err error) error {
	switch {
	case err == nil && f.dir && !info.IsDir():
		return fmt.Errorf("%q is not a folder", shorten(f.path))
	case err == nil && f.regular && info.IsDir():
		return fmt.Errorf("%q is a folder: name a file in it", shorten(f.path))
	case err == nil && f.regular && !info.Mode().IsRegular():
		return fmt.Errorf("%q is not a regular file: name one", shorten(f.path))
	case err == nil && f.secret && info.Mode().Perm()&0o007 != 0:
		return exposedSecret(f.path)
	case err == nil:
		return nil
	case f.secret && isMissing(err) && !strings.HasPrefix(f.path, "/"):
		return errors.New("there is no such file: write the path of a file that has the secret, not the secret itself")
	case isMissing(err):
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			err = path.Err
		}
		return fmt.Errorf("%q does not exist (%w): create it, or correct the path", shorten(f.path), err)
	default:
		return unsureError{err}
	}
}

// isMissing reports whether a path leads to nothing.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.ELOOP)
}
