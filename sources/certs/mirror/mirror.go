// Package mirror fills a folder with what servers without Internet access need to verify EK and
// DevID certificates: EK certificates that TPMs do not carry, the issuers up to the roots, and
// revocation lists. Config.MirrorURL of package ekca is the URL of a web server whose root is the
// folder, and <mirror>/<host>/<path> are the base URLs for its EKCertificateURLs.
//
// A mirror need not be trusted: a server that uses it verifies signatures up to a CA that is
// configured on that server.
//
// For each certificate of a machine, chain.go asks certs.Find what is needed. mirror.go takes it
// from the folder or fetches it.
package mirror

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// Config says what is mirrored, and into which folder.
type Config struct {
	// Folder is created if there is none.
	Folder string
	// Hosts may be asked for issuers and CRLs, as truststore.Config.AIAHosts.
	Hosts []string
	// Services are asked in turn for EK certificates that are not given.
	Services []Service
	// CRLs is true if CRLs are wanted.
	CRLs bool
	// Force fetches everything again, even what is fresh.
	Force bool
	// Progress receives a line for each object, and for each object that is missing.
	Progress io.Writer
	// Now is the clock; time.Now if it is nil.
	Now func() time.Time
}

// A Service has EK certificates; see ekca.Config.EKCertificateURLs.
type Service struct{ Name, Base string }

// A Summary counts what has been done.
type Summary struct {
	// Fetched and Kept count the objects in the folder: those that this run has fetched, and those
	// that were there already.
	Fetched, Kept int
	// Missing counts what a server will not find.
	Missing int
}

// How long a file is fresh. EK certificates do not change until they expire.
const (
	issuerAge = 30 * 24 * time.Hour
	crlAge    = time.Hour
)

// workers is the number of EKs and DevIDs that are processed at the same time.
const workers = 4

// Upstream returns the vendor's base URL of a service, given the base URL with which a server is
// configured: https://<host>/<path> for <mirror>/<host>/<path>, and the same URL otherwise.
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

// Fill fetches what the machines need into the folder. A file that is fresh is kept, so a run
// continues where an interrupted run has stopped. A file is written only if a server would accept
// it: a certificate that has signed the one that names it and has not expired, or a CRL that its CA
// has signed for what names it. Files are replaced atomically, and a CRL is never replaced by an
// older one. A file that no server would accept counts as missing.
//
// An error means that not everything was tried: there is a mistake in the configuration, the folder
// cannot be written, or ctx has ended. An object that cannot be fetched is not an error: the
// summary counts it, and Progress says why.
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
		objects: map[string]*object{}, begun: map[[sha256.Size]byte]bool{},
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

// filler is a run of Fill.
type filler struct {
	cfg      Config
	machines *Machines
	store    *fetch.Fetcher
	dir      *folder
	eks      *leaves
	devIDs   *leaves
	verified *certs.Memo
	// abort ends the run.
	abort context.CancelCauseFunc

	mu      sync.Mutex // guards the fields below
	objects map[string]*object
	begun   map[[sha256.Size]byte]bool // see begin
	done    int                        // EKs and DevIDs
	summary Summary
}

// leaves are end-entity certificates of one kind.
type leaves struct {
	profile certs.Profile
	anchors *certs.Anchors // the CAs in the machines' files that may be above such leaves
}

// object is the state of a URL in a run.
type object struct {
	mu sync.Mutex
	// answer is the answer to what was wanted last, which wanted identifies: machines with the same
	// CA want the same.
	wanted string
	answer certs.Answer
	// had is true if there is a file, and fetched if this run has fetched it.
	had, fetched bool
}

// run processes all machines.
func (f *filler) run(ctx context.Context) {
	f.eks = f.leaves(ctx, certs.EK(), len(f.machines.eks))
	f.devIDs = f.leaves(ctx, certs.DevID(), len(f.machines.devIDs))
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, workers)
	do := func(one func()) {
		slots <- struct{}{}
		if ctx.Err() != nil {
			return
		}
		wg.Go(func() {
			one()
			f.mu.Lock()
			f.done++
			f.mu.Unlock()
			<-slots
		})
	}
	for _, e := range f.machines.eks {
		do(func() { f.machine(ctx, e) })
	}
	for _, c := range f.machines.devIDs {
		do(func() { f.chain(ctx, f.devIDs, c) })
	}
}

// leaves returns the leaves of a profile, or nil if n, their number, is 0. It notes the CAs that
// cannot be above such leaves.
func (f *filler) leaves(ctx context.Context, p certs.Profile, n int) *leaves {
	if n == 0 {
		return nil
	}
	file := certs.File{Path: "the machines' files"}
	for i, cert := range f.machines.cas {
		file.Entries = append(file.Entries, certs.Entry{Certificate: cert, Number: i + 1})
	}
	anchors, warnings, err := certs.NewAnchors(ctx, []certs.File{file}, p, f.cfg.Now())
	if err != nil {
		f.abort(err)
	}
	for _, w := range warnings {
		f.note("%s", w)
	}
	return &leaves{p, anchors}
}

// begin reports whether this run sees a certificate for the first time for a kind of leaves and of
// objects. A CA of both EKs and DevIDs may be acceptable for only one of the two kinds of leaves.
func (f *filler) begin(of *leaves, kind certs.Kind, c *x509.Certificate) bool {
	key := sha256.Sum256(slices.Concat([]byte(of.profile.String()), []byte(kind), c.Raw))
	f.mu.Lock()
	defer f.mu.Unlock()
	begun := f.begun[key]
	f.begun[key] = true
	return !begun
}

// get returns the object at a URL, and makes sure that it is in the folder. A run requests a URL
// again only if another certificate names the URL and the file is of no use for that certificate.
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

// obtain takes what is wanted from the folder if it is fresh there, and fetches it otherwise. If
// that fails, or returns something that is refused or older, an old file that is still accepted is
// kept and used.
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

// fetch asks the server. The answer is cached by its URL alone, so that one request serves all
// certificates that name the URL.
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

// usable returns the object in a file, and when it was written. The value is nil if there is no
// file, or if no server would accept it.
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

// broken ends the run, since the folder cannot be used. If only the name of this file is taken by
// another certificate's, the run continues.
func (f *filler) broken(doing, name string, err error) error {
	if !errors.Is(err, errOccupied) {
		err = fmt.Errorf("%s %q: %w", doing, name, err)
		f.abort(err)
	}
	return err
}

// fresh reports whether a file need not be fetched again.
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

// count counts an object that is in the folder, and reports it: once, and once more if it was first
// kept and then fetched.
func (f *filler) count(o *object, fetched bool, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !o.had || fetched && !o.fetched {
		o.had, o.fetched = true, fetched
		f.print(format, args...)
	}
}

// missing counts something that a server will not find, and says why.
func (f *filler) missing(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.summary.Missing++
	f.print("MISSING  %s: %v", what, err)
}

// note reports something that is not a failure.
func (f *filler) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.print("note     "+format, args...)
}

// print writes a line of progress, with the number of EKs and DevIDs that are done.
func (f *filler) print(format string, args ...any) {
	line := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	all := f.machines.Len() + f.machines.DevIDs()
	_, err := fmt.Fprintf(f.cfg.Progress, "[%d/%d] %s\n", f.done, all, printable(line))
	if err != nil {
		f.abort(fmt.Errorf("report progress: %w", err))
	}
}

// name returns the name of a CA for people.
func name(n pkix.Name) string {
	if n.CommonName != "" {
		return strconv.Quote(n.CommonName)
	}
	return strconv.Quote(n.String())
}

// printable returns s in a form for a terminal: characters of a certificate that could manipulate a
// terminal are escaped.
func printable(s string) string {
	q := strconv.QuoteToASCII(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
