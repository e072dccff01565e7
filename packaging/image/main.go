// Image makes the container images of a release, each as an OCI layout in a tar archive, for the
// architectures that it is given:
//
//	image -out FOLDER -version VERSION -epoch SECONDS [-busybox ARCH=FILE]... -programs ARCH=FOLDER...
//
// spire-tpm-attestor-server and spire-tpm-attestor-agent hold a plugin and nothing else, and are for its
// -install. spire-tpm-attestor-shell, which is made if there is a static busybox for each architecture, has a
// shell, and both plugins under the paths of spire-tpm-plugin's images.
//
// The same files give the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// A release has the files that images are made of.
type release struct {
	version  string
	created  time.Time
	programs paths // folders
	busybox  paths // files
	script   []byte
}

// paths has a path for each architecture.
type paths map[string]string

// String implements flag.Value.
func (p paths) String() string { return "" }

// Set implements flag.Value.
func (p paths) Set(text string) error {
	arch, path, ok := strings.Cut(text, "=")
	if !ok || arch == "" || path == "" {
		return errors.New("write ARCH=PATH")
	}
	p[arch] = path
	return nil
}

func run(args []string) error {
	r := release{programs: paths{}, busybox: paths{}}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("out", "", "the folder that the images are written to")
	epoch := flags.Int64("epoch", 0, "the time of the release, in seconds since 1970")
	script := flags.String("pubhash", "files/get-tpm-pubhash", "the script get-tpm-pubhash")
	flags.StringVar(&r.version, "version", "", "the version of the release")
	flags.Var(r.programs, "programs", "ARCH=FOLDER with the plugins")
	flags.Var(r.busybox, "busybox", "ARCH=FILE, a static busybox")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || r.version == "" || len(r.programs) == 0 || flags.NArg() > 0 {
		return errors.New("give -out, -version and -programs, and no other arguments")
	}
	r.created = time.Unix(*epoch, 0).UTC()
	var err error
	if r.script, err = os.ReadFile(*script); err != nil {
		return err
	}
	return r.writeAll(*out)
}

func (r *release) writeAll(folder string) error {
	for _, plugin := range []string{"server", "agent"} {
		name := "spire-tpm-attestor-" + plugin
		program := "tpm-attestor-" + plugin
		err := r.write(folder, name, "SPIRE "+plugin+` plugin "tpm", to be installed into a volume by -install`,
			[]string{"/" + program}, func(arch string) ([]file, error) {
				return r.plugin(arch, program, program)
			})
		if err != nil {
			return err
		}
	}
	if len(r.busybox) == 0 {
		return nil
	}
	const what = `SPIRE plugins "tpm" under the paths of spire-tpm-plugin's images, with a shell`
	return r.write(folder, "spire-tpm-attestor-shell", what, []string{"/bin/sh"}, r.withShell)
}

// A file goes into an image: a program, a text or, with a target, a link.
type file struct {
	name    string // without a slash at the beginning
	mode    fs.FileMode
	content []byte
	target  string
}

// plugin returns a plugin under a name in an image.
func (r *release) plugin(arch, program, name string) ([]file, error) {
	content, err := os.ReadFile(filepath.Join(r.programs[arch], program)) //nolint:gosec // G304: an argument
	if err != nil {
		return nil, err
	}
	return []file{{name: name, mode: 0o755, content: content}}, nil
}

// applets are the commands of busybox that the image has links for: those that charts run, and those that a
// person needs to look around.
var applets = []string{
	"cat", "chmod", "cp", "cut", "dd", "echo", "env", "find", "grep", "head", "id", "ln", "ls", "mkdir", "mount",
	"mv", "printf", "ps", "readlink", "rm", "sed", "sh", "sha256sum", "sleep", "stat", "tail", "tee", "test",
	"touch", "true", "wc",
}

// withShell returns what the image with a shell holds.
func (r *release) withShell(arch string) ([]file, error) {
	busybox, err := os.ReadFile(r.busybox[arch])
	if err != nil {
		return nil, fmt.Errorf("busybox for %s: %w", arch, err)
	}
	server, err := r.plugin(arch, "tpm-attestor-server", "app/tpm_attestor_server")
	if err != nil {
		return nil, err
	}
	agent, err := r.plugin(arch, "tpm-attestor-agent", "app/tpm_attestor_agent")
	if err != nil {
		return nil, err
	}
	const installed = "/usr/libexec/spire/plugins/tpm-attestor-agent"
	if !bytes.Contains(r.script, []byte(installed)) {
		return nil, fmt.Errorf("get-tpm-pubhash does not run %s", installed)
	}
	script := bytes.ReplaceAll(r.script, []byte(installed), []byte("/app/tpm_attestor_agent"))
	all := slices.Concat(server, agent, []file{
		{name: "app/get_tpm_pubhash", mode: 0o755, content: script},
		{name: "bin/busybox", mode: 0o755, content: busybox},
	})
	for _, applet := range applets {
		all = append(all, file{name: "bin/" + applet, target: "busybox"})
	}
	return all, nil
}

// write writes one image for all architectures.
func (r *release) write(
	folder, name, what string, entrypoint []string, content func(arch string) ([]file, error),
) error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range slices.Sorted(maps.Keys(r.programs)) {
		files, err := content(arch)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		image, err := r.image(arch, name, what, entrypoint, files)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        image,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	temp, err := os.MkdirTemp("", "image")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }() // temporary all the same
	// The index of the layout has one entry: the image, whatever the architecture.
	tagged := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add:        index,
		Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": r.version}},
	})
	if _, err := layout.Write(temp, tagged); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return r.archive(temp, filepath.Join(folder, name+"_"+r.version+"_oci.tar"))
}

func (r *release) image(arch, name, what string, entrypoint []string, files []file) (v1.Image, error) {
	content, err := r.layer(files)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{
		Layer: layer, History: v1.History{Created: v1.Time{Time: r.created}, CreatedBy: "packaging/image"},
	})
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", arch, v1.Time{Time: r.created}
	config.Config = v1.Config{
		Entrypoint: entrypoint,
		Env:        []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":       name,
			"org.opencontainers.image.description": what,
			"org.opencontainers.image.version":     r.version,
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.source":      "https://github.com/spire-tpm/spire-tpm-attestor",
		},
	}
	return mutate.ConfigFile(image, config)
}

// layer returns files as a tar archive, with the folders that they are in.
func (r *release) layer(files []file) ([]byte, error) {
	all := slices.Clone(files)
	folders := map[string]bool{}
	for _, f := range files {
		for d := filepath.Dir(f.name); d != "."; d = filepath.Dir(d) {
			folders[d] = true
		}
	}
	for d := range folders {
		all = append(all, file{name: d + "/", mode: 0o755})
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.name, b.name) })
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range all {
		header := tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: int64(f.mode), Size: int64(len(f.content)), ModTime: r.created,
		}
		switch {
		case strings.HasSuffix(f.name, "/"):
			header.Typeflag = tar.TypeDir
		case f.target != "":
			header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.target, 0o777
		}
		if err := w.WriteHeader(&header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// archive writes a folder as a tar archive.
func (r *release) archive(folder, path string) error {
	var files []file
	err := filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(name) //nolint:gosec // G304: we have just written it
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(folder, name)
		files = append(files, file{name: rel, mode: 0o644, content: content})
		return err
	})
	if err != nil {
		return err
	}
	content, err := r.layer(files)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644) //nolint:gosec // G306: for everybody
}
