package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca/mirror"
)

// fillFlags are the options of -fill-mirror.
type fillFlags struct {
	folder, config string
	hosts          repeated
	services       repeated
	noCRLs, force  bool
}

// repeated is a flag that may be given several times.
type repeated []string

func (r *repeated) String() string { return strings.Join(*r, ",") }

func (r *repeated) Set(value string) error {
	*r = append(*r, value)
	return nil
}

func (f *fillFlags) define(flags *flag.FlagSet) {
	flags.StringVar(&f.folder, "fill-mirror", "", "")
	flags.StringVar(&f.config, "config", "", "")
	flags.Var(&f.hosts, "aia-host", "")
	flags.Var(&f.services, "ek-certificate-url", "")
	flags.BoolVar(&f.noCRLs, "no-crl", false, "")
	flags.BoolVar(&f.force, "force", false, "")
}

// used reports whether an option of -fill-mirror was given.
func (f *fillFlags) used() bool {
	return f.config != "" || len(f.hosts) > 0 || len(f.services) > 0 || f.noCRLs || f.force
}

// fillMirror fills a mirror and returns the exit code: 0 where all is there, 1
// where something is missing, 2 where nothing was tried.
func fillMirror(f fillFlags, files []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cfg, err := f.mirrorConfig(stdin)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	var machines mirror.Machines
	for _, name := range files {
		content, err := readAtMost(name, stdin, mirror.MaxInput)
		if err == nil {
			err = machines.Read(content)
		}
		if err != nil {
			fmt.Fprintf(stderr, "read the machines in %s: %v\n", name, err)
			return 2
		}
	}
	if machines.Len() == 0 {
		return misused(stderr, "name the machines' files, as printed by `tpm-attestor-agent -pem`")
	}
	cfg.Progress = stdout
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := mirror.Fill(ctx, cfg, &machines)
	fmt.Fprintf(stdout, "%d EKs: %d fetched, %d kept, %d missing\n", machines.Len(), s.Fetched, s.Kept, s.Missing)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "fill the mirror: %v: run it again; what was fetched is kept\n", err)
		return 1
	case s.Missing > 0:
		fmt.Fprintln(stderr, "the mirror is incomplete: see MISSING above and run it again; what was fetched is kept")
		return 1
	}
	return 0
}

// mirrorConfig returns what the configuration and the flags say, both together.
func (f *fillFlags) mirrorConfig(stdin io.Reader) (mirror.Config, error) {
	cfg := mirror.Config{CRLs: true}
	if f.config != "" {
		text, err := readAtMost(f.config, stdin, maxConfig)
		if err != nil {
			return cfg, fmt.Errorf("read the configuration: %w", err)
		}
		// Its files are on the server, and not here.
		c, err := config.ParseFile(string(text))
		if err != nil {
			return cfg, fmt.Errorf("read the configuration: %w", err)
		}
		cfg = c.Mirrored()
	}
	cfg.Hosts = append(cfg.Hosts, f.hosts...)
	for _, s := range f.services {
		name, base, found := strings.Cut(s, "=")
		if !found || name != "intel" && name != "amd" {
			return cfg, fmt.Errorf("-ek-certificate-url %q: write intel=https://… or amd=https://…", s)
		}
		cfg.Services = append(cfg.Services, mirror.Service{Name: name, Base: base})
	}
	if len(cfg.Hosts) == 0 && len(cfg.Services) == 0 {
		return cfg, errors.New("there is nowhere to fetch from: give -config with aia_hosts or ek_certificate_urls, " +
			"-aia-host or -ek-certificate-url")
	}
	cfg.Folder, cfg.Force = f.folder, f.force
	cfg.CRLs = cfg.CRLs && !f.noCRLs
	return cfg, nil
}
