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

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
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
		cfg: cfg, machines: m, store: store, dir: dir, abort: cancel, verified: certs.NewMemo(),
		objects: map[string]*object{}, begun: map[string]bool{},
	}
	f.run(ctx)
	for _, o := range f.objects {
		switch {
		case o.fetched:
			f.summary.Fetched++
		case o.had:
			f.summary.Kept++
		}
	}
	return f.summary, errors.Join(context.Cause(ctx), store.Close(), dir.close())
}

// filler is one run of Fill.
type filler struct {
	cfg      Config
	machines *Machines
	store    *fetch.Fetcher
	dir      *folder
	anchors  *certs.Anchors // the CAs in the machines' files
	verified *certs.Memo
	// abort ends the run.
	abort context.CancelCauseFunc

	mu      sync.Mutex // for all below
	objects map[string]*object
	begun   map[string]bool // see begin
	done    int             // EKs
	summary Summary
}

// object is what one URL has.
type object struct {
	mu sync.Mutex
	// answer is for what was wanted last, by its ID: machines of one CA want the same.
	wanted string
	answer certs.Answer
	// had is whether it is in the folder, and fetched whether it came there in this run.
	had, fetched bool
}

// run looks after all machines.
func (f *filler) run(ctx context.Context) {
	file := certs.File{Path: "the machines' files"}
	for i, cert := range f.machines.cas {
		file.Entries = append(file.Entries, certs.Entry{Certificate: cert, Number: i + 1})
	}
	anchors, warnings, err := certs.NewAnchors(ctx, []certs.File{file}, certs.EK(), f.cfg.Now())
	if err != nil {
		f.abort(err)
		return
	}
	f.anchors = anchors
	for _, w := range warnings {
		f.note("%s", w)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, workers)
	for _, e := range f.machines.eks {
		slots <- struct{}{}
		if ctx.Err() != nil {
			return
		}
		wg.Go(func() {
			f.machine(ctx, e)
			f.mu.Lock()
			f.done++
			f.mu.Unlock()
			<-slots
		})
	}
}

// begin reports whether a kind of work for a certificate is done for the first time.
func (f *filler) begin(kind certs.Kind, c *x509.Certificate) bool {
	key := string(kind) + " " + string(c.Raw)
	f.mu.Lock()
	defer f.mu.Unlock()
	begun := f.begun[key]
	f.begun[key] = true
	return !begun
}

// get returns what a URL has, and sees to it that it is in the folder. In a run, a URL is
// asked for anew only if what is there is of no use for another certificate that names it.
func (f *filler) get(ctx context.Context, w certs.Want) certs.Answer {
	f.mu.Lock()
	o := f.objects[w.URL]
	if o == nil {
		o = &object{}
		f.objects[w.URL] = o
	}
	f.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wanted != w.ID() {
		value, err := f.obtain(ctx, o, w)
		if err != nil {
			err = fmt.Errorf("%q: %w", w.URL, err)
		}
		o.wanted, o.answer = w.ID(), certs.Answer{Value: value, Err: err}
	}
	return o.answer
}

// obtain takes what is wanted from the folder if it is fresh there, and fetches it otherwise.
// If that fails, or gives something that is refused or older, a file that is still of use will
// do, and stays as it is.
func (f *filler) obtain(ctx context.Context, o *object, w certs.Want) (any, error) {
	name, err := Path(w.URL)
	if err != nil {
		return nil, err
	}
	kept, written, err := f.usable(name, w)
	if err != nil {
		return nil, err
	}
	if kept != nil && (o.had || !f.cfg.Force && f.fresh(kept, written)) {
		f.count(o, false, "kept     %s", name)
		return kept, nil
	}
	body, value, err := f.fetch(ctx, w)
	if list, ok := value.(*certs.CRL); ok && err == nil && list.Succeed(kept) != nil {
		err = fmt.Errorf("the one on the server was issued before the one in the folder: %w", list.Succeed(kept))
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
	if err := f.dir.write(name, body); err != nil {
		return nil, f.broken("write", name, err)
	}
	f.count(o, true, "fetched  %s, %d bytes", name, len(body))
	return value, nil
}

// fetch asks for what is wanted. A server is asked once, whatever for.
func (f *filler) fetch(ctx context.Context, w certs.Want) (body []byte, value any, err error) {
	got, err := f.store.Get(ctx, fetch.Kind(w.Kind), w.URL, func([]byte) (any, time.Time, error) {
		return nil, time.Time{}, nil
	})
	if err != nil {
		return nil, nil, err
	}
	value, _, err = w.Read(got.Body)
	return got.Body, value, err
}

// usable returns what a file holds, and when it was written; nil if there is none, or none
// that a server would accept.
func (f *filler) usable(name string, w certs.Want) (any, time.Time, error) {
	content, written, err := f.dir.read(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, time.Time{}, nil
	case err != nil:
		return nil, time.Time{}, f.broken("read", name, err)
	}
	value, _, err := w.Read(content)
	if err != nil {
		return nil, time.Time{}, nil //nolint:nilerr // it is replaced
	}
	return value, written, nil
}

// broken ends the run because the folder cannot be used, unless it is only that another
// certificate's file has the place.
func (f *filler) broken(doing, name string, err error) error {
	if !errors.Is(err, errOccupied) {
		err = fmt.Errorf("%s %q: %w", doing, name, err)
		f.abort(err)
	}
	return err
}

// fresh reports whether a file need not be asked for again.
func (f *filler) fresh(value any, written time.Time) bool {
	now := f.cfg.Now()
	age := now.Sub(written)
	switch value := value.(type) {
	case *x509.Certificate:
		return !now.After(value.NotAfter)
	case *certs.CRL:
		return age >= 0 && age < crlAge && (value.NextUpdate.IsZero() || !now.After(value.NextUpdate))
	default:
		return age >= 0 && age < issuerAge
	}
}

// count takes down that an object is in the folder: once, and once more if it is fetched
// after it was kept.
func (f *filler) count(o *object, fetched bool, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !o.had || fetched && !o.fetched {
		o.had, o.fetched = true, fetched
		f.print(format, args...)
	}
}

// missing takes down what a server will not find.
func (f *filler) missing(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.summary.Missing++
	f.print("MISSING  %s: %v", what, err)
}

// note tells what is no failure.
func (f *filler) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.print("note     "+format, args...)
}

// print writes a line of progress, with how many EKs are done.
func (f *filler) print(format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	_, err := fmt.Fprintf(f.cfg.Progress, "[%d/%d] %s\n", f.done, f.machines.Len(), printable(line))
	if err != nil {
		f.abort(fmt.Errorf("report progress: %w", err))
	}
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
