package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// programs takes programs out of the release's archive.
func (c *checker) programs(to map[string]string) error {
	found, err := filepath.Glob(filepath.Join(c.dist, "spire-tpm-attestor_*_linux_"+runtime.GOARCH+".tar.gz"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%d archives for this machine in %s", len(found), c.dist)
	}
	file, err := os.Open(found[0])
	if err != nil {
		return err
	}
	defer file.Close()
	return eachFile(file, func(h *tar.Header, content io.Reader) error {
		path, ok := to[filepath.Base(h.Name)]
		if !ok || h.Typeflag != tar.TypeReg || h.Mode&0o100 == 0 {
			return nil
		}
		return writeFile(path, content, 0o755)
	})
}

// unpack makes an image's files below a root.
func (c *checker) unpack(image, root string) error {
	found, err := filepath.Glob(filepath.Join(c.dist, image+"_*_oci.tar"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("%d images %s in %s", len(found), image, c.dist)
	}
	archive, err := os.Open(found[0])
	if err != nil {
		return err
	}
	defer archive.Close()
	blobs := map[string][]byte{}
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if blobs[filepath.Base(h.Name)], err = io.ReadAll(r); err != nil {
			return err
		}
	}
	layers, err := layersOf(blobs, "index.json")
	if err != nil {
		return fmt.Errorf("%s: %w", found[0], err)
	}
	for _, layer := range layers {
		err := eachFile(bytes.NewReader(blobs[layer]), func(h *tar.Header, content io.Reader) error {
			path := filepath.Join(root, filepath.Clean("/"+h.Name))
			switch h.Typeflag {
			case tar.TypeDir:
				return os.MkdirAll(path, h.FileInfo().Mode().Perm())
			case tar.TypeSymlink:
				return os.Symlink(h.Linkname, path)
			}
			return writeFile(path, content, h.FileInfo().Mode().Perm())
		})
		if err != nil {
			return fmt.Errorf("%s: %w", found[0], err)
		}
	}
	return nil
}

// layersOf follows indexes and manifests down to the layers for this machine.
func layersOf(blobs map[string][]byte, name string) ([]string, error) {
	type descriptor struct {
		Digest   string
		Platform *struct{ Architecture string }
	}
	var m struct{ Manifests, Layers []descriptor }
	if err := json.Unmarshal(blobs[name], &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var all []string
	for _, d := range m.Layers {
		all = append(all, strings.TrimPrefix(d.Digest, "sha256:"))
	}
	for _, d := range m.Manifests {
		if d.Platform == nil || d.Platform.Architecture == runtime.GOARCH {
			return layersOf(blobs, strings.TrimPrefix(d.Digest, "sha256:"))
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no layer is for this machine")
	}
	return all, nil
}

// eachFile calls do with each entry of a compressed archive.
func eachFile(r io.Reader, do func(*tar.Header, io.Reader) error) error {
	unzipped, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	for archive := tar.NewReader(unzipped); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = do(h, archive)
		}
		if err != nil {
			return err
		}
	}
}

func writeFile(path string, content io.Reader, mode os.FileMode) error {
	//nolint:gosec // G304: below a folder of ours
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Chmod(mode), file.Close())
}
