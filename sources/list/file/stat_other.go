//go:build !unix

package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Servers run on Linux. On other systems, the operator's tool reads files but does not watch them,
// so package os is sufficient.

type identity struct {
	device, inode uint64 // not known
	size          int64
	mode          fs.FileMode
	mtime         time.Time
}

func identityOf(info fs.FileInfo) identity {
	return identity{size: info.Size(), mode: info.Mode(), mtime: info.ModTime()}
}

func (id identity) tag() string { return fmt.Sprintf("%+v", id) }

func (id identity) resembles(other identity) bool { return id == other }

func (id identity) regular() error {
	switch {
	case id.mode.IsRegular():
		return nil
	case id.mode.IsDir():
		return errors.New("is a folder: name the file in it")
	}
	return errors.New("is not a regular file")
}

func (id identity) modified() time.Time { return id.mtime }

func lookAt(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	return identityOf(info), nil
}

type openFile struct{ file *os.File }

func openRegular(path string) (openFile, identity, error) {
	id, err := lookAt(path)
	if err != nil {
		return openFile{}, identity{}, err
	}
	if err := id.regular(); err != nil {
		return openFile{}, identity{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	file, err := os.Open(path)
	if err != nil {
		return openFile{}, identity{}, err
	}
	f := openFile{file}
	if id, err = f.look(); err != nil {
		f.close()
	}
	return f, id, err
}

func (f openFile) look() (identity, error) {
	info, err := f.file.Stat()
	if err != nil {
		return identity{}, err
	}
	return identityOf(info), nil
}

func (f openFile) close() { _ = f.file.Close() }

func (f openFile) readAll(_ context.Context, size int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f.file, size+1))
	if err == nil && int64(len(data)) != size {
		err = errChanged
	}
	return data, err
}
