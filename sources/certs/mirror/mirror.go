// Package mirror fills a folder with what servers without the Internet need to
// verify EK certificates: the certificates that TPMs do not carry, their issuers
// up to the roots, and revocation lists. A web server that has the folder as its
// root is what Config.MirrorURL of package ekca expects, and
// <mirror>/<host>/<path> are the base URLs of its EKCertificateURLs.
//
// Nothing in a mirror has to be trusted: whoever uses it verifies signatures up to
// a CA that is configured there.
package mirror

import (
	"cmp"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// Config says what is mirrored, and where to.
type Config struct {
	// Folder is made where there is none.
	Folder string
	// Hosts may be asked for issuers and CRLs, as ekca.Config.AIAHosts.
	Hosts []string
	// Services are asked in turn for EK certificates that are not given.
	Services []Service
	// CRLs is whether CRLs are wanted.
	CRLs bool
	// Force has all fetched anew, what is fresh as well.
	Force bool
	// Progress gets a line for each object, and for each thing that is
	// missing.
	Progress io.Writer
	// Now is the clock; time.Now where it is nil.
	Now func() time.Time
}

// A Service has EK certificates; see ekca.Config.EKCertificateURLs.
type Service struct{ Name, Base string }

// A Summary counts what has been done.
type Summary struct {
	// Fetched and Kept are objects that are in the folder: new ones, and those
	// that were there.
	Fetched, Kept int
	// Missing is how many things a server will not find.
	Missing int
}

// For how long a file is not asked for again. EK certificates do not change until
// they expire.
const (
	issuerAge = 30 * 24 * time.Hour
	crlAge    = time.Hour
)

// workers is how many EKs are looked after at a time.
const workers = 4

// Upstream returns where a service's certificates come from, by the base URL that
// a server has for it: https://<host>/<path> for one on the mirror,
// <mirror>/<host>/<path>, and what it says for others.
func Upstream(base, mirror string) string {
	if mirror == "" {
		return base
	}
	rest, ok := strings.CutPrefix(base, strings.TrimSuffix(mirror, "/")+"/")
	if host, _, found := strings.Cut(rest, "/"); !ok || !found || !strings.ContainsAny(host, ".:") {
		return base
	}
	return "https://" + rest
}

// Fill gets what the machines need into the folder. What is there and fresh is
// kept, so that a run that was interrupted goes on where it was. A file is written
// only with what a server would accept (an issuer that has signed what names it and
// has not expired, a CRL by one of the known issuers), and replaced only by what is
// not older, at one moment. A file that is not so counts as one that is not there.
//
// An error means that not everything was tried: a mistake in the configuration, a
// folder that cannot be written, ctx has ended. What cannot be had is no error; it
// is in the summary, and Progress says why.
func Fill(ctx context.Context, cfg Config, m *Machines) (Summary, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	var bases []string
	for _, s := range cfg.Services {
		bases = append(bases, s.Base)
	}
	store, err := fetch.New(fetch.Config{Hosts: cfg.Hosts, Bases: bases, Now: cfg.Now})
	if err != nil {
		return Summary{}, err
	}
	dir, err := openFolder(cfg.Folder)
	if err != nil {
		return Summary{}, errors.Join(err, store.Close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &filler{
		cfg: cfg, machines: m, store: store, dir: dir, abort: cancel,
		objects: map[string]*object{}, begun: map[string]bool{},
	}
	f.run(ctx)
	return f.summary, errors.Join(context.Cause(ctx), store.Close(), dir.close())
}

// filler is one run of Fill.
type filler struct {
	cfg      Config
	machines *Machines
	store    *fetch.Fetcher
	dir      *folder
	// abort ends the run.
	abort context.CancelCauseFunc

	mu      sync.Mutex // for all below
	objects map[string]*object
	// begun are the certificates whose chains have been looked at.
	begun   map[string]bool
	done    int // EKs
	summary Summary
}

// object is what one URL has.
type object struct {
	mu    sync.Mutex
	value any // nil until there is one
	// counted is whether it is in the summary, and fetched as what.
	counted, fetched bool
}

// accept returns why a server would not use a value for what names it, or nil.
type accept func(value any) error

// run looks after all machines.
func (f *filler) run(ctx context.Context) {
	work := make(chan *ek)
	var wg sync.WaitGroup
	for range min(workers, f.machines.Len()) {
		wg.Go(func() {
			for e := range work {
				f.machine(ctx, e)
				f.mu.Lock()
				f.done++
				f.mu.Unlock()
			}
		})
	}
	for _, e := range f.machines.eks {
		select {
		case work <- e:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
}

// begin reports whether a certificate is looked at for the first time.
func (f *filler) begin(c *x509.Certificate) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun[string(c.Raw)] {
		return false
	}
	f.begun[string(c.Raw)] = true
	return true
}

// object returns what a URL has, parsed, that ok accepts, and sees to it that it is
// in the folder. It is asked for once in a run.
func (f *filler) object(
	ctx context.Context, kind fetch.Kind, at string, parse fetch.Parse, ok accept,
) (any, error) {
	key := string(kind) + " " + at
	f.mu.Lock()
	o := f.objects[key]
	if o == nil {
		o = &object{}
		f.objects[key] = o
	}
	f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.value != nil && ok(o.value) == nil {
		return o.value, nil
	}
	value, err := f.obtain(ctx, o, kind, at, parse, ok)
	if err != nil {
		return nil, err
	}
	o.value = value
	return value, nil
}

// obtain takes an object from the folder where it is fresh there, and fetches it
// otherwise. Where that fails, or gives something that ok does not accept or that is
// older, a file that could still be used will do, and stays as it is.
func (f *filler) obtain(
	ctx context.Context, o *object, kind fetch.Kind, at string, parse fetch.Parse, ok accept,
) (any, error) {
	name, err := Path(at)
	if err != nil {
		return nil, err
	}
	if err := f.dir.free(name); err != nil {
		return nil, err
	}
	kept, written, err := f.usable(name, parse, ok)
	if err != nil {
		return nil, err
	}
	if kept != nil && !f.cfg.Force && f.fresh(kept, kind, written) {
		f.count(o, false, "kept     %s", name)
		return kept, nil
	}
	got, err := f.store.Get(ctx, kind, at, parse)
	if err == nil {
		err = cmp.Or(ok(got.Value), older(got.Value, kept, f.cfg.Now()))
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && kept != nil:
		f.count(o, false, "kept     %s, from %s, since it could not be updated: %v",
			name, written.UTC().Format(time.DateOnly), err)
		return kept, nil
	case err != nil:
		return nil, err
	}
	if err := f.dir.claim(name); err != nil {
		return nil, err
	}
	if err := f.dir.write(name, got.Body); err != nil {
		err = fmt.Errorf("write %q: %w", name, err)
		f.abort(err)
		return nil, err
	}
	f.count(o, true, "fetched  %s, %d bytes", name, len(got.Body))
	return got.Value, nil
}

// usable returns what a file holds, parsed; nil where there is none that a server
// would accept.
func (f *filler) usable(name string, parse fetch.Parse, ok accept) (any, time.Time, error) {
	content, written, err := f.dir.read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, time.Time{}, nil
	case err != nil && f.dir.free(name) != nil: // another certificate's file has come there meanwhile
		return nil, time.Time{}, f.dir.free(name)
	case err != nil:
		err = fmt.Errorf("read %q: %w", name, err)
		f.abort(err)
		return nil, time.Time{}, err
	}
	value, _, err := parse(content)
	if err == nil {
		err = ok(value)
	}
	if err != nil {
		return nil, time.Time{}, nil //nolint:nilerr // it is replaced
	}
	return value, written, nil
}

// fresh reports whether a file need not be asked for again.
func (f *filler) fresh(value any, kind fetch.Kind, written time.Time) bool {
	age := f.cfg.Now().Sub(written)
	switch kind {
	case fetch.EKCertificate:
		cert, ok := value.(*x509.Certificate)
		return ok && !f.cfg.Now().After(cert.NotAfter)
	case fetch.CRL:
		return age >= 0 && age < crlAge && f.overdue(value) == nil
	default:
		return age >= 0 && age < issuerAge
	}
}

// count takes down an object that is in the folder, once: as fetched where it was
// kept at first.
func (f *filler) count(o *object, fetched bool, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case o.counted && (o.fetched || !fetched):
	case fetched:
		f.summary.Fetched++
		if o.counted {
			f.summary.Kept--
		}
	default:
		f.summary.Kept++
	}
	o.counted, o.fetched = true, o.fetched || fetched
	f.print(format, args...)
}

// missing takes down what a server will not find.
func (f *filler) missing(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.summary.Missing++
	f.print("MISSING  %s: %s", what, oneLine(err))
}

// note tells what is no failure.
func (f *filler) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.print("note     "+format, args...)
}

// print writes a line of progress, with how many EKs are done.
func (f *filler) print(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	_, err := fmt.Fprintf(f.cfg.Progress, "[%d/%d] %s\n", f.done, f.machines.Len(), printable(line))
	if err != nil {
		f.abort(fmt.Errorf("report progress: %w", err))
	}
}

func oneLine(err error) string {
	if err == nil {
		return "no URL says where it is"
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// name names a CA.
func name(n pkix.Name) string {
	if n.CommonName != "" {
		return strconv.Quote(n.CommonName)
	}
	return strconv.Quote(n.String())
}

// printable returns s for a terminal, with what a certificate may use to play
// tricks on one escaped.
func printable(s string) string {
	q := strconv.QuoteToASCII(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
