package validate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/devid"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// checkServer checks the server's configuration.
func (v *validation) checkServer(file *config.File) {
	r, ctx := v.result, v.cmd.Context()
	c, err := file.Load(ctx)
	if err != nil {
		r.refused(err)
		// If only files are missing, the rest is checked all the same.
		if c, err = file.Parse(); err != nil {
			return
		}
	} else {
		r.warned(c.Warned())
	}
	p := cli.StartProgress(v.cmd.ErrOrStderr(), "reading what the configuration names", "")
	defer p.End()
	s := &serverContent{validation: v, config: c, documents: map[string]*ekhashes.Document{}}
	for _, path := range c.Paths() {
		v.mayUse(path)
	}
	for _, m := range c.Members {
		if at := c.Place(m.Name); !r.Findings.Under(at, finding.Error) && !r.Findings.Under(at, finding.Unknown) {
			p.Now("reading what " + c.Place(m.Name) + " names")
			s.look(m)
		}
	}
	if s.network {
		s.noteUnfetched()
	}
	s.idleRules()
	s.emptyDenyLists()
	s.sharedNames()
}

// warned adds the warnings of a configuration.
func (r *validated) warned(warnings []config.Warning) {
	for _, w := range warnings {
		f := finding.Finding{Severity: finding.Warning, At: w.Path, File: w.File, Line: w.Line, Message: w.Message}
		if w.Unsure {
			f.Severity = finding.Unknown
		}
		r.Findings = append(r.Findings, f)
		r.Warnings = append(r.Warnings, w.String())
	}
}

// serverContent checks the files, lists and databases that the sources of a configuration name.
type serverContent struct {
	*validation
	config *config.Config
	// documents has the lists that could be read, by the name of the source.
	documents map[string]*ekhashes.Document
}

// look checks what one source names, within a time limit: a file system may hang.
func (s *serverContent) look(m admission.Member) {
	at := s.config.Place(m.Name)
	one := content{at: at, network: s.network, validation: s.validation}
	err := s.Within(s.cmd.Context(), func(ctx context.Context) error {
		one.look(ctx, m)
		return nil
	})
	if err != nil { // one.look may still run, and write to one
		s.result.Findings.Failed(at, err)
		return
	}
	s.result.Findings = append(s.result.Findings, one.findings...)
	if one.document != nil {
		s.documents[m.Name] = one.document
	}
}

// noteUnfetched tells for which sources nothing was fetched: what they fetch depends on the certificate of a machine.
func (s *serverContent) noteUnfetched() {
	var all []string
	for _, m := range s.config.Members {
		fetches := false
		switch cfg := m.Config.(type) {
		case ekca.Config:
			fetches = len(cfg.AIAHosts) > 0 || len(cfg.EKCertificateURLs) > 0
		case devid.Config:
			fetches = len(cfg.AIAHosts) > 0
		}
		if fetches {
			all = append(all, s.config.Place(m.Name))
		}
	}
	if len(all) > 0 {
		cli.Note(s.cmd, "nothing was fetched for %s: which issuers and revocation lists a server fetches depends on a "+
			"machine's certificate: ask for one with tpm-attestor check --network CONFIG EK, EK being a file with it",
			strings.Join(all, ", "))
	}
}

// content checks what one source names, and collects the findings.
type content struct {
	*validation
	at       string // the path of keys of the source
	network  bool
	findings finding.List
	document *ekhashes.Document // the source's list; nil if it has none that could be read
}

// place returns the path of keys to a field of the source.
func (c *content) place(field string) string {
	if strings.HasPrefix(c.at, "source ") {
		return c.at + ": " + field
	}
	return c.at // c.at is the field already
}

// look reads what the source names, with the server's code.
func (c *content) look(ctx context.Context, m admission.Member) {
	switch cfg := m.Config.(type) {
	case hashfile.Config:
		c.hashFile(ctx, cfg)
	case hashdir.Config:
		c.hashDir(ctx, cfg)
	case ekca.Config:
		cfg.CachePath = "" // loading would lock the cache, in which there is nothing that a person wrote
		s, err := ekca.New(cfg)
		c.authorities(ctx, s, err)
	case devid.Config:
		cfg.CachePath = ""
		s, err := devid.New(cfg)
		c.authorities(ctx, s, err)
	case httplist.Config:
		c.files(cfg.CheckFiles, cfg.CAPath, cfg.ClientCertPath)
		if c.network && !c.findings.Has(finding.Error) {
			c.fetchList(ctx, cfg)
		}
	case bootpolicy.Config:
		c.bootPolicy(ctx, cfg)
	case sqltable.Config:
		c.files(cfg.CheckFiles, cfg.CAPath, cfg.ClientCertPath)
		if c.network && !c.findings.Has(finding.Error) {
			c.askTable(ctx, cfg)
		}
	}
}

func (c *content) hashFile(ctx context.Context, cfg hashfile.Config) {
	s, err := hashfile.New(cfg)
	if err == nil {
		err = s.Load(ctx)
	}
	if err != nil {
		c.findings.InFile(c.place("path"), cfg.Path, err)
		return
	}
	c.warnings(c.place("path"), s.Status().Warnings)
	c.document, _ = s.Current() // it has just been loaded
}

func (c *content) hashDir(ctx context.Context, cfg hashdir.Config) {
	if cfg.Marker != "" {
		if _, err := os.Stat(filepath.Join(cfg.Path, cfg.Marker)); errors.Is(err, fs.ErrNotExist) {
			c.findings = append(c.findings, finding.Finding{
				Severity: finding.Error, At: c.place("marker"),
				Message: fmt.Sprintf("there is no file %q in %s, so the source cannot tell", cfg.Marker, cfg.Path),
				Action:  "mount the file system, or create the file",
			})
			return
		}
	}
	place := func(_ uint32, hash sources.EKHash) string { return filepath.Join(cfg.Path, hash.String()) }
	var bad []string
	builder := ekhashes.NewBuilder(place, true) // a machine may have a second entry, in a shard
	warnings, _, err := hashdir.Entries(ctx, cfg.Path, func(
		path string, hash sources.EKHash, attrs sources.Attributes, err error,
	) {
		if err == nil {
			err = builder.Add(0, ekhashes.Entry{Hash: hash, Name: attrs.Name, Labels: attrs.Labels})
		}
		if err != nil && len(bad) < list.MaxMistakes {
			bad = append(bad, path)
			c.findings.Failed(c.place("path"), fmt.Errorf("%s: %w", filepath.Join(cfg.Path, path), err))
		}
	})
	if err == nil {
		c.document, err = builder.Build(list.Header{})
	}
	if err != nil {
		c.findings.Failed(c.place("path"), err)
	}
	c.warnings(c.place("path"), slices.DeleteFunc(warnings, func(w string) bool {
		return slices.ContainsFunc(bad, func(path string) bool { // a finding has its path and reason already
			return strings.HasPrefix(w, fmt.Sprintf("the entry %q cannot be used", path))
		})
	}))
}

// authorities loads a source with its CA files. err is the error of the source's constructor.
func (c *content) authorities(ctx context.Context, source interface {
	sources.Loader
	sources.Reporter
}, err error,
) {
	if err == nil {
		err = source.Load(ctx)
	}
	if err != nil {
		c.findings.Failed(c.at, err)
		return
	}
	c.warnings(c.at, source.Status().Warnings)
}

func (c *content) bootPolicy(ctx context.Context, cfg bootpolicy.Config) {
	if cfg.URL != "" {
		c.files(cfg.CheckFiles, cfg.CAPath, cfg.ClientCertPath)
		if !c.network || c.findings.Has(finding.Error) {
			return
		}
	}
	cfg.CachePath = ""
	s, err := bootpolicy.New(cfg)
	if err == nil {
		err = s.Load(ctx)
	}
	switch {
	case err == nil:
		c.warnings(c.at, s.Status().Warnings)
	case cfg.URL != "":
		c.findings.Failed(c.place("url"), err)
	default:
		c.findings.InFile(c.place("path"), cfg.Path, err)
	}
}

// fetchList asks the web server for the list.
func (c *content) fetchList(ctx context.Context, cfg httplist.Config) {
	if cfg.ServerID != "" {
		c.findings = append(c.findings, finding.Finding{
			Severity: finding.Unknown, At: c.place("url"),
			Message: "the list was not fetched: its web server asks for an X.509-SVID, which only SPIRE Server has",
		})
		return
	}
	cfg.CachePath = ""
	s, err := httplist.New(cfg)
	if err == nil {
		err = s.Load(ctx)
	}
	if err != nil {
		c.findings.Failed(c.place("url"), err)
		return
	}
	c.warnings(c.place("url"), s.Status().Warnings)
	c.document, _ = s.Current() // it has just been loaded
}

// askTable looks up a machine that does not exist, and counts the rows that no look-up can find.
func (c *content) askTable(ctx context.Context, cfg sqltable.Config) {
	cfg.Timeout = max(cfg.Timeout, countTimeout)
	s, err := sqltable.New(cfg)
	if err == nil {
		_, err = s.Check(ctx, &sources.Evidence{})
	}
	if err != nil {
		c.findings.Failed(c.at, err)
		return
	}
	n, known, err := s.CountMalformed(ctx)
	switch {
	case err != nil:
		c.findings.Failed(c.at, err)
	case !known:
		c.findings.Warn(c.at, "", "whether every row has an EK hash was not counted: the query does not end in "+
			"FROM <table> WHERE <column> = ?")
	case n > 0:
		c.findings.Warn(c.at, "write 64 lower-case hex digits, and give the column the CHECK of the documentation",
			"%d rows have no EK hash that a look-up finds", n)
	}
}

// countTimeout is how long reading a whole table may take.
const countTimeout = 25 * time.Second

// files checks the small files that a source names, by the source's own check, and when their certificates expire.
func (c *content) files(check func(func(string, error)), caPath, certPath string) {
	wrong := map[string]bool{}
	check(func(field string, err error) {
		wrong[field] = true
		c.findings.Failed(c.place(field), err)
	})
	if caPath != "" && !wrong["ca_path"] {
		c.certificates(c.place("ca_path"), caPath, true)
	}
	if certPath != "" && !wrong["client_cert_path"] {
		c.certificates(c.place("client_cert_path"), certPath, false)
	}
}

// soon is how long before a certificate expires validate warns of that.
const soon = 30 * 24 * time.Hour

// certificates reports the certificates in a PEM file that are of no use to the server, or will soon be of none. If
// cas is false, the first is a client's certificate, and the others are its chain.
func (c *content) certificates(at, path string, cas bool) {
	data, err := smallfile.Read(path, smallfile.MaxPEM)
	if err != nil {
		c.findings.Failed(at, err)
		return
	}
	blocks, err := smallfile.Blocks(data)
	if err != nil {
		c.findings.Failed(at, err)
		return
	}
	for i, b := range blocks {
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil { // files has checked what must be a certificate
			continue
		}
		which := fmt.Sprintf("certificate %d in %s", i+1, path)
		if cas && !cert.IsCA && cert.BasicConstraintsValid {
			c.findings.Warn(at, "name the CA's, unless the server has exactly this one", "%s is not a CA's", which)
		}
		switch left := time.Until(cert.NotAfter); {
		case left <= 0 && !cas && i == 0:
			c.findings = append(c.findings, finding.Finding{
				Severity: finding.Error, At: at, Action: "renew it",
				Message: fmt.Sprintf("%s expired at %s", which, cert.NotAfter.UTC().Format(time.RFC3339)),
			})
		case left <= 0:
			c.findings.Warn(at, "replace it", "%s expired at %s", which, cert.NotAfter.UTC().Format(time.RFC3339))
		case left < soon:
			c.findings.Warn(at, "get the next one", "%s expires at %s", which, cert.NotAfter.UTC().Format(time.RFC3339))
		case time.Until(cert.NotBefore) > 0:
			c.findings.Warn(at, "set the clock, if that is wrong", "%s is valid only from %s on",
				which, cert.NotBefore.UTC().Format(time.RFC3339))
		}
	}
}

// warnings adds the warnings of a source. A warning about a file begins with the quoted path of the file.
func (c *content) warnings(at string, warnings []string) {
	for _, w := range warnings {
		f := finding.Finding{Severity: finding.Warning, At: at, Message: w}
		if quoted, err := strconv.QuotedPrefix(w); err == nil {
			plain := strings.Trim(quoted, `"`)
			if rest, ok := strings.CutPrefix(w[len(quoted):], ": "); ok && strconv.Quote(plain) == quoted {
				f.File, f.Message = plain, rest
			}
		}
		c.findings = append(c.findings, f)
	}
}
